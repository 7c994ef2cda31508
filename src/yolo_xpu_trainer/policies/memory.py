"""Memory figures that every driver can give, and a smaller batch where memory runs out after the first epoch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..devices import DeviceInfo
from ..hookspecs import hookimpl
from ..run import Run

__all__: list[str] = []


@hookimpl
def xpu_memory(device: DeviceInfo) -> tuple[int, int]:
    """Return reserved and total bytes: the free memory can't be queried everywhere (pytorch#159728)."""
    return device.reserved_memory(), device.total_memory


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Let Ultralytics halve the batch in every epoch, as it does in the first.

    A run needs more memory from its second optimizer step on, when there are gradients and the optimizer's state: with
    few batches an epoch that is in the second one. Plain Ultralytics in fp16 gets there later, because its first steps
    are skipped until the gradients' scale has come down.
    """
    from ultralytics.engine.trainer import BaseTrainer

    if _NAME in vars(BaseTrainer):  # of a run within which this one was begun
        yield
        return
    setattr(BaseTrainer, _NAME, _StartEpoch())
    try:
        yield
    finally:
        delattr(BaseTrainer, _NAME)  # a trainer keeps its value where it had it: in its own dict


_NAME = "start_epoch"


class _StartEpoch:
    """The attribute `start_epoch` of trainers, which for Ultralytics' loop, while it handles an error, is the epoch.

    There it asks whether this is the first epoch, in which alone it halves the batch, and where to begin again.
    """

    def __get__(self, trainer: Any, kind: type | None = None) -> Any:
        if trainer is None:
            return self
        if _NAME not in vars(trainer):
            raise AttributeError(f"{type(trainer).__name__!r} object has no attribute {_NAME!r}")
        run: Run | None = getattr(trainer, "xpu", None)
        if run is None:
            return vars(trainer)[_NAME]
        return run.recovery.calling(_start_epoch, trainer, sys._getframe(1), instead=lambda *_: vars(trainer)[_NAME])

    def __set__(self, trainer: Any, epoch: Any) -> None:
        vars(trainer)[_NAME] = epoch


def _start_epoch(trainer: Any, caller: FrameType) -> Any:
    """Return what a caller gets as a trainer's first epoch."""
    handles = isinstance(sys.exc_info()[1], RuntimeError) and caller.f_code.co_name == "_do_train"
    return trainer.epoch if handles else vars(trainer)[_NAME]
