"""What a volunteer with an Intel GPU runs: `python -m tests.hardware`."""
