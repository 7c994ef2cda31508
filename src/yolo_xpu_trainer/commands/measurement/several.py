"""A training on several XPUs, measured: in processes that torchrun starts, of which rank 0 tells what it saw."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...files import AtomicPath
from .cases import WINDOW_SECONDS, Case, Device, Implementation, Window

__all__ = ["main", "train"]

_PATIENCE = 900.0  # seconds from the start until the window must have ended; kernels may be compiled meanwhile
_UNTIL_TOLD = 20.0  # seconds that the others leave rank 0 to tell what it saw


@dataclass(frozen=True)
class _Sizes:
    imgsz: int
    batch: int
    steps: int


def train(job: Any, case: Case, implementation: Implementation) -> Window:
    """Train on several XPUs until a window has ended; see `timing.train`.

    Args:
        job: What all measurements have in common, a `timing.Job`; each XPU trains on as many images as its batch has.
        case: Devices and precision.
        implementation: Whose trainer.

    Raises:
        NotMeasured: It didn't come to an end, or another thing ran.
    """
    from .timing import NotMeasured

    sizes = _Sizes(job.settings.imgsz, job.settings.batch * len(case.device.indices), job.settings.steps)
    with tempfile.TemporaryDirectory(dir=job.scratch) as directory:
        answer, output = Path(directory, "answer.json"), Path(directory, "output.txt")
        asked = {
            "model": job.model.file,
            "sizes": asdict(sizes),
            "scratch": directory,
            "data": str(job.data),
            "arguments": dict(job.arguments),
            "device": asdict(case.device),
            "precision": case.precision,
            "implementation": implementation,
        }
        Path(directory, "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        ranks = f"--nproc-per-node={len(case.device.indices)}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks, "-m", __name__, directory]
        with output.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + _PATIENCE
            while not answer.exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
        finally:
            _end(process)
        if not answer.exists():
            raise NotMeasured(_why(output.read_text(encoding="utf-8", errors="replace")))
        told = json.loads(answer.read_text(encoding="utf-8"))
    if "reason" in told:
        raise NotMeasured(told["reason"])
    steps = told.pop("optimizer_steps")
    job.on_step()
    return Window(**told, optimizer_steps=tuple(steps) if steps else None)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a launcher with its processes, which may wait for each other."""
    import psutil

    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
    process.wait()


def _why(output: str) -> str:
    """Return what the first process that failed said last."""
    errors = [line for line in output.splitlines() if "Error: " in line and "ChildFailedError" not in line]
    return errors[0].partition("]:")[2].strip() or errors[0] if errors else "its processes didn't come to an end"


def main(directory: str) -> None:
    """Take part, as the rank that the environment says; rank 0 leaves an answer."""
    from . import model, timing
    from .isolation import first_line, plain_ultralytics, quiet, with_package

    asked: Mapping[str, Any] = json.loads(Path(directory, "asked.json").read_text(encoding="utf-8"))
    rank = int(os.environ["LOCAL_RANK"])
    device = Device(**{**asked["device"], "indices": tuple(asked["device"]["indices"])})
    case = Case("train", replace(device, index=device.indices[rank]), asked["precision"])
    sizes = _Sizes(**asked["sizes"])
    job = timing.Job(
        model.load(asked["model"]),
        replace(sizes, steps=sys.maxsize) if rank else sizes,  # rank 0 ends the others with its window
        Path(asked["scratch"]),
        Path(asked["data"]),
        {},
        lambda: None,
        asked["arguments"],
        seconds=WINDOW_SECONDS if rank == 0 else math.inf,
    )
    ours = asked["implementation"] == "ours"
    try:
        with with_package() if ours else plain_ultralytics(), quiet():
            told = asdict(timing.train(job, case, asked["implementation"]))
    except timing.NotMeasured as error:
        told = {"reason": str(error)}
    except Exception as error:
        told = {"reason": first_line(error)}
    answer = AtomicPath(directory, "answer.json")
    if rank:
        time.sleep(_UNTIL_TOLD)  # which ends this process, unless rank 0 waits for it
    if not answer.exists():
        answer.write_text(json.dumps(told), encoding="utf-8")
    time.sleep(_UNTIL_TOLD)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
