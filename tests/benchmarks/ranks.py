"""Count what a step of two ranks does on rank 0: plain Ultralytics and ours, each in two processes of torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import Case

__all__ = ["HEADINGS", "Step", "cells", "lost", "step"]

PROFILE = "max-1550"  # two devices
RANKS = 2


@dataclass(frozen=True)
class Step:
    """What a step did, on average.

    Attributes:
        collectives: Operations that both ranks take part in.
        kilobytes: What they wrote.
        waits: How often the host waited for the device.
        launches: Kernels.
    """

    collectives: float
    kilobytes: float
    waits: float
    launches: float


HEADINGS = ["model, optimizer, precision", "collectives a step", "kB in them", "waits a step", "launches a step"]


def step(case: Case, data: str, *, ours: bool, **options: Any) -> Step:
    """Train in two processes, and return what a step of the second epoch did on rank 0.

    Args:
        case: What is trained.
        data: The data set.
        ours: Whether with this package's trainer, or plain Ultralytics'.
        **options: More arguments of the training.
    """
    with tempfile.TemporaryDirectory() as directory:
        asked = {"case": vars(case), "data": data, "ours": ours, "directory": directory, "options": options}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
        done = subprocess.run(
            [*command, "-m", __name__, json.dumps(asked)],
            env={**os.environ, "XPU_SIMULATOR": PROFILE},
            capture_output=True,
            text=True,
            check=False,
        )
        told = Path(directory, "step.json")
        if not told.exists():
            raise RuntimeError(done.stdout + done.stderr)
        return Step(**json.loads(told.read_text()))


def cells(plain: Step, ours: Step) -> list[str]:
    """Return a row of the table, plain Ultralytics' figure before ours."""
    return [
        f"{getattr(plain, name):.{digits}f} → {getattr(ours, name):.{digits}f}"
        for name, digits in (("collectives", 1), ("kilobytes", 0), ("waits", 1), ("launches", 0))
    ]


def lost(case: Case, plain: Step, ours: Step, rounded: Step) -> Iterator[str]:
    """Say where a goal is lost.

    Ours does nothing more often than plain Ultralytics, and copies no gradient back by itself. Gradients that are
    exchanged in bf16, `rounded`, have half the bytes; the loss, and what a step counts, have no more than before.
    """
    for name in ("collectives", "kilobytes", "waits"):
        if getattr(ours, name) > getattr(plain, name):
            yield f"{case}, two ranks: {getattr(ours, name):.1f} {name} a step, plain {getattr(plain, name):.1f}"
    if ours.launches > 0.9 * plain.launches:
        yield f"{case}, two ranks: {ours.launches:.0f} launches a step, more than 0.9 x {plain.launches:.0f}"
    if not 0.5 * ours.kilobytes <= rounded.kilobytes < 0.51 * ours.kilobytes:
        yield f"{case}, two ranks: {rounded.kilobytes:.0f} kB with xpu_bf16_gradients, {ours.kilobytes:.0f} without"


def _train(asked: dict[str, Any]) -> None:
    """Train as one rank."""
    import logging
    from contextlib import nullcontext

    import ultralytics  # noqa: F401 - activates this package

    from ..training import plain_ultralytics
    from .counting import train, waits

    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    case, ours = Case(**asked["case"]), asked["ours"]
    options: dict[str, Any] = {
        "device": "xpu:0,1",
        "optimizer": case.optimizer,
        "amp": case.precision == "bf16",
        "project": asked["directory"],
        "name": "run",
        "save": False,
        "val": False,
        **({"xpu_log_every": 3600.0} if ours else {}),
        **asked["options"],
    }
    around = nullcontext if ours else plain_ultralytics
    done = train(case.ours if ours else case.plain, f"{case.model}.yaml", asked["data"], options, around=around)
    if os.environ["RANK"] == "0":
        n, counts = done.steps, done.step
        found = Step(counts.collectives / n, counts.bytes_collective / n / 1000, waits(counts) / n, counts.launches / n)
        Path(asked["directory"], "step.json").write_text(json.dumps(vars(found)))


if __name__ == "__main__":
    _train(json.loads(sys.argv[1]))
