"""A process that saves again and again is killed at random moments; after each kill every file must load.

`kills.py FOLDER N` trains for an epoch, then forks a child that saves for each kill. Of what some of the kills left, a
copy is kept, `FOLDER/kept-0` and so on, for a resume. Run as a script.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

RESUMED = 5
"""Of so many kills, spread over all, a copy is kept."""


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    from ultralytics import YOLO

    model: Any = YOLO("yolo11n.yaml")
    model.add_callback("on_fit_epoch_end", lambda trainer: kill(trainer, kills) if trainer.epoch == 0 else None)
    model.train(
        data=str(folder / "data.yaml"), project=str(folder), name="run", device="xpu:0", epochs=2, imgsz=32, batch=4,
        workers=0, plots=False, save_period=1, val=False,
    )  # fmt: skip


def kill(trainer: Any, kills: int) -> None:
    """Kill children that save, and say what they left."""
    randomly = random.Random(0)
    broken: list[str] = []
    files = kept = 0
    for number in range(kills):
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                save_for_ever(trainer)
            os._exit(1)
        time.sleep(randomly.uniform(0.02, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path in trainer.wdir.glob("*.pt"):
            files += 1
            try:
                torch.load(path, map_location="cpu", weights_only=False)
            except Exception as error:
                broken.append(f"kill {number}: {path.name}: {error!r}"[:200])
        if number >= kept * kills // RESUMED and _goes_on(trainer.last):
            shutil.copytree(trainer.save_dir, trainer.save_dir.parent / f"kept-{kept}")
            kept += 1
        with trainer.csv.open() as file:
            if len({len(row) for row in csv.reader(file)}) != 1:
                broken.append(f"kill {number}: results.csv")
    left = len(list(trainer.save_dir.rglob(".*.part")))
    print(json.dumps({"kills": kills, "files": files, "broken": broken, "left": left, "kept": kept}), flush=True)


def _goes_on(last: Path) -> bool:
    """Whether a checkpoint is one of a run that has epochs to go, and no finished one's."""
    return int(torch.load(last, map_location="cpu", weights_only=False)["epoch"]) == 0


def save_for_ever(trainer: Any) -> None:
    """Do what a run does to its files, in its order, the final evaluation's part with every third turn."""
    from ultralytics.utils.torch_utils import strip_optimizer

    with trainer.csv.open() as file:
        columns = [name.strip() for name in next(csv.reader(file))]
    metrics = dict.fromkeys([name for name in columns if name not in ("epoch", "time", "")], 0.5)
    turn = 0
    while True:
        turn += 1
        trainer.save_metrics(metrics)
        trainer.save_model()
        if turn % 3 == 0:
            strip_optimizer(trainer.last)
            strip_optimizer(trainer.best)
            trainer.save_model()


if __name__ == "__main__":
    main()
