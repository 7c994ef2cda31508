"""One training on a simulated device with one fault at one moment. Run as a script, in a process of its own.

`scenario.py FAULT MOMENT FOLDER` trains for three epochs; `scenario.py resume - FOLDER` goes on from the last
checkpoint. A line of JSON says what came of it; the exit status is that of the `yolo` command.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPOCHS = 3
ARGUMENTS: dict[str, Any] = {
    "epochs": EPOCHS, "imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "plots": False, "amp": False, "save_period": 1,
}  # fmt: skip


def fault_of(name: str) -> Callable[[], None]:
    """Return what a fault does when its moment has come."""
    from xpu_simulator import faults

    def fill_the_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    return {
        "out of memory": lambda: faults.out_of_memory(at_launch=3),
        "error 39": lambda: faults.out_of_memory(at_launch=3, text=faults.OUT_OF_DEVICE_MEMORY),
        "error 40": lambda: faults.out_of_memory(at_launch=3, text=faults.OUT_OF_RESOURCES),
        "device lost": lambda: faults.device_lost(at_launch=3),
        "kill -9": kill,
        "full disk": fill_the_disk,
        "NaN": lambda: None,
        "none": lambda: None,
    }[name]


def install(model: Any, moment: str, act: Callable[[], None], fault: str) -> None:
    """Let a fault happen once, at a moment of the training."""
    done: list[bool] = []

    def once(*_: Any) -> None:
        if not done:
            done.append(True)
            act()

    def at_batch(epoch: int, number: int) -> Callable[[Any], None]:
        seen: dict[int, int] = {}

        def look(trainer: Any) -> None:
            seen[trainer.epoch] = seen.get(trainer.epoch, 0) + 1
            if (trainer.epoch, seen[trainer.epoch]) == (epoch, number):
                if fault == "NaN" and not done:
                    done.append(True)
                    next(trainer.model.parameters()).data.fill_(float("nan"))
                once()

        return look

    def wrapping(name: str, epoch: int, within: bool = False) -> Callable[[Any], None]:
        """Wrap a method of the trainer, so that the fault happens in its call, or in writing a file in it."""

        def wrap(trainer: Any) -> None:
            original = getattr(trainer, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                if trainer.epoch == epoch:
                    if within:
                        _in_writing(once)
                    else:
                        once()
                return original(*args, **kwargs)

            setattr(trainer, name, call)

        return wrap

    def in_validation(epoch: int) -> Callable[[Any], None]:
        def look(validator: Any) -> None:
            if validator.training and model.trainer_epoch() == epoch:
                once()

        return look

    last = EPOCHS - 1
    event, callback = {
        "first batch": ("on_train_batch_start", at_batch(0, 1)),
        "mid-epoch": ("on_train_batch_start", at_batch(1, 2)),
        "last epoch": ("on_train_batch_start", at_batch(last, 1)),
        "optimizer": ("on_train_start", lambda trainer: trainer.optimizer.register_step_pre_hook(
            lambda *_: once() if trainer.epoch == 1 else None)),
        "validation": ("on_val_start", in_validation(1)),
        "saving": ("on_train_start", wrapping("save_model", 1, within=fault == "kill -9")),
        "results.csv": ("on_train_start", wrapping("save_metrics", 1, within=fault == "kill -9")),
        "final evaluation": ("on_train_start", wrapping("final_eval", last, within=fault == "kill -9")),
    }[moment]  # fmt: skip
    model.add_callback(event, callback)


def _in_writing(act: Callable[[], None]) -> None:
    """Act when a file has been written beside the one that it will replace, and not been renamed."""
    fsync = os.fsync

    def flush(file: int) -> None:
        os.fsync = fsync
        act()
        fsync(file)

    os.fsync = flush


def main() -> None:
    fault, moment, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    from ultralytics import YOLO

    from yolo_xpu_trainer.errors import XPUTrainerError

    if fault == "resume":
        model: Any = YOLO(str(folder / "run" / "weights" / "last.pt"))
        arguments: dict[str, Any] = {"resume": True}
    else:
        model = YOLO("yolo11n.yaml")
        arguments = {**ARGUMENTS, "data": str(folder / "data.yaml"), "project": str(folder), "name": "run"}
        trainers: list[Any] = []
        model.trainer_epoch = lambda: trainers[0].epoch
        model.add_callback("on_train_start", trainers.append)
        install(model, moment, fault_of(fault), fault)
    status, error = 0, ""
    try:
        model.train(device="xpu:0", **arguments)
    except XPUTrainerError as raised:
        status, error = raised.exit_status, str(raised)
    except OSError as raised:
        status, error = 1, f"{errno.errorcode.get(raised.errno or 0, '')} {raised}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    batch = int(model.trainer.batch_size)
    finite = all(bool(p.isfinite().all()) for p in model.trainer.model.parameters()) if not status else True
    print(json.dumps({"scenario": fault, "error": error, "batch": batch, "finite": finite}), flush=True)
    sys.stdout.flush()
    os._exit(status)  # a lost device can't be taken down in order


if __name__ == "__main__":
    main()
