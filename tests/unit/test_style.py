"""Lint, format and types, checked with the tests."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "command", [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)], ids=" ".join
)
def test_the_repository_passes(command: tuple[str, ...]) -> None:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the settings are in the repository's pyproject.toml, which isn't here")
    pinned = re.search(r"torch==([\d.]+)", (ROOT / "tox.ini").read_text())
    if command[0] == "mypy" and pinned and pinned[1] != version("torch").partition("+")[0]:
        pytest.skip(f"which types PyTorch tells depends on its release: they are checked with {pinned[1]}")
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
