"""Memory figures that every driver can give, and a smaller batch where memory runs out after the first epoch."""

from __future__ import annotations

from typing import Any

from ..devices import DeviceInfo
from ..hookspecs import hookimpl

__all__: list[str] = []


@hookimpl
def xpu_memory(device: DeviceInfo) -> tuple[int, int]:
    """Return reserved and total bytes: the free memory can't be queried everywhere (pytorch#159728)."""
    return device.reserved_memory(), device.total_memory


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Let Ultralytics halve the batch in every epoch, as it does in the first.

    A run needs more memory from its second optimizer step on, when there are gradients and the optimizer's state: with
    few batches an epoch that is in the second one. Plain Ultralytics in fp16 gets there later, because its first steps
    are skipped until the gradients' scale has come down.
    """
    first: list[int] = []

    def begin(trainer: Any) -> None:
        first[:] = first or [trainer.start_epoch]
        trainer.start_epoch = (
            trainer.epoch
        )  # to restart at, with its learning rate; a later one's error would be raised

    def end(trainer: Any) -> None:
        if first:
            trainer.start_epoch = first.pop()

    trainer.add_callback("on_train_epoch_start", begin)
    trainer.add_callback("on_train_epoch_end", end)
