"""The benchmark's command, which trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_one_command_prints_the_table_and_keeps_the_goals() -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "--models", "yolo11n", "yolo11n-seg", "--optimizers", "AdamW"]
    done = subprocess.run(
        [*command, "--untimed", "--markdown", "--precisions", "bf16"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 cases, 0 goals lost" in done.stdout
    assert [line.split(" | ")[0] for line in done.stdout.splitlines() if line.startswith("| yolo")] == [
        "| yolo11n AdamW bf16",
        "| yolo11n-seg AdamW bf16",
    ]


@pytest.mark.needs("torch.distributed.is_xccl_available")
def test_the_steps_of_two_ranks_are_counted_beside_plain_ultralytics() -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "--ranks", "--models", "yolo11n-cls", "--optimizers", "AdamW"]
    done = subprocess.run([*command, "--precisions", "bf16"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 cases, 0 goals lost" in done.stdout
    # The third one adds up which parameters no rank has used.
    assert "3.0 → 2.0" in done.stdout
