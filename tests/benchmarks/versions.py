"""Counts what a step of ours does on older versions of Ultralytics, each in a process of its own.

Plain Ultralytics before 8.4.111 can't train on an XPU, so they are compared with ours on the installed version.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..matrix.__main__ import ROOT, overlay
from .cases import Case

__all__ = ["VERSIONS", "Step", "lost", "step"]

VERSIONS = ("8.3.0", "8.3.133", "8.4.60", "8.4.110")
_MOST = 1.1  # times what it is on the installed version
_ABSENT = ("NotImplementedError: Optimizer", "FileNotFoundError: 'yolo26")


class Step(NamedTuple):
    """What a step does.

    Attributes:
        launches: Kernels.
        waits: How often the host waits, but for the reading of an epoch's last losses.
    """

    launches: float
    waits: float


def step(version: str | None, case: Case, cache: Path) -> Step | None:
    """Count a step.

    Args:
        version: Of Ultralytics; None for the installed one.
        case: What is trained.
        cache: Where versions are kept.

    Returns:
        The counts; None where this version has no such model or optimizer.
    """
    before = [str(path) for path in overlay(version, cache)] if version else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(before)}
    command = [sys.executable, "-m", f"{__package__}.versions", *dataclasses.astuple(case)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith('{"launches"')]
    if done.returncode or not found:
        if any(reason in done.stderr for reason in _ABSENT):
            return None
        raise RuntimeError(done.stderr[-2000:])
    return Step(**json.loads(found[0]))


def lost(version: str, case: Case, found: Step, newest: Step) -> Iterator[str]:
    """Name each goal that is missed."""
    for name, value, at_newest in zip(Step._fields, found, newest, strict=True):
        if value > _MOST * at_newest:
            yield f"{version} {case}: {name} a step: {value:.4g}, {at_newest:.4g} on the installed version"


def main() -> None:
    """Count, on the Ultralytics that is in front."""
    from .__main__ import prepare

    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        from ..datasets import WRITERS
        from .counting import train, waits

        case = Case(*sys.argv[1:])
        data = str(WRITERS[case.task](Path(scratch), images=16))  # type: ignore[call-arg]
        options = {"optimizer": case.optimizer, "amp": case.precision == "bf16", "project": scratch, "name": "run"}
        ours = train(case.ours, f"{case.model}.yaml", data, {**options, "xpu_log_every": 3600.0})
    print("\n" + json.dumps(Step(ours.step.launches / ours.steps, (waits(ours.step) - 1) / ours.steps)._asdict()))


if __name__ == "__main__":
    main()
