"""A search with Ray Tune, one of whose trials is killed; then it is resumed. Run by `test_ray.py` as a process.

python -m tests.runs.ray_search DATA PROJECT RECORDS
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ultralytics import YOLO

from yolo_xpu_trainer.errors import NoSuchXPUError

ITERATIONS = 4


class Recorded(YOLO):
    """A model whose trainings leave a record each, and the first of which is killed."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, in a process of Ray's: this class is sent there as it is."""
        from xpu_simulator import native

        folder = Path(os.environ["RECORDS"])
        record: dict[str, Any] = {
            "pid": os.getpid(),
            "began": time.time(),
            "mask": os.environ.get("ZE_AFFINITY_MASK"),
            "devices": native.call("device_count"),
            "gpu": native.call("physical_index", 0),
        }

        def note(trainer: Any) -> None:
            record["trainer"] = type(trainer).__name__
            record["ended"] = time.time()
            (folder / f"{record['pid']}.json").write_text(json.dumps(record))

        def die(trainer: Any) -> None:
            note(trainer)
            try:
                (folder / "killed").touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

        self.add_callback("on_train_batch_end", die)
        self.add_callback("on_train_end", note)
        return super().train(*args, **kwargs)


def search(data: str, project: str, **more: Any) -> list[str | None]:
    """Search, and return each trial's error, or None."""
    results = Recorded("yolo11n.yaml").tune(
        use_ray=True,
        iterations=ITERATIONS,
        search_alg="random",
        space={"lr0": tune.uniform(1e-4, 1e-2)},
        data=data,
        project=project,
        epochs=1,
        imgsz=32,
        batch=4,
        workers=0,
        plots=False,
        xpu_self_check=False,
        **more,
    )
    return [str(result.error) if result.error else None for result in results]


def main(data: str, project: str, records: str) -> None:
    os.environ["RECORDS"] = records
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ultralytics").addHandler(handler)
    ray.init(num_gpus=0)
    with pytest.raises(NoSuchXPUError) as refused:
        search(data, project)
    ray.shutdown()
    first = search(data, project)
    before = len(list(Path(records).glob("*.json")))
    again = search(data, project, resume=True)
    report = {"first": first, "trained": before, "again": again, "said": [s for s in said if s.startswith("XPU:")]}
    report["refused"] = str(refused.value)
    Path(records, "report").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
