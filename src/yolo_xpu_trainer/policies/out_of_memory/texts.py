"""One error where memory runs out, whatever its text; and what a run says that memory or a lost device ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...device_errors import DeviceLostError, NotEnoughMemoryError, is_out_of_memory, responds
from ...files import quoted
from ...run import checkpoint_of

__all__ = ["first_line", "lost", "not_enough", "one_error"]


@contextmanager
def one_error(device: torch.device) -> Iterator[None]:
    """Raise what Ultralytics understands.

    Raises:
        torch.OutOfMemoryError: The device's memory ran out.
        RuntimeError: The device is lost.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not is_out_of_memory(error):
            raise
        if not responds(device):
            raise RuntimeError(f"the device is lost: {error}") from error
        raise torch.OutOfMemoryError(f"XPU out of memory: {error}") from error


def lost(trainer: Any, error: RuntimeError) -> DeviceLostError:
    """Return the error of a run whose device is lost."""
    device = str(trainer.xpu.device)
    return DeviceLostError(
        f"{device} was lost {_where(trainer)} ({first_line(error)}): the driver reset it, most often because memory "
        f"ran out or a kernel took too long. This process can't use it any more. {_how_to_go_on(trainer)}",
        device=device,
        checkpoint=_checkpoint(trainer),
    )


def not_enough(trainer: Any, error: RuntimeError) -> NotEnoughMemoryError:
    """Return the error of a run that doesn't fit into memory."""
    device, batch = str(trainer.xpu.device), int(getattr(trainer, "batch_size", 0) or 0)
    size = getattr(trainer.args, "imgsz", None)
    smaller = f"batch={max(batch // 2, 1)}"
    advice = f"Use {smaller}" if batch > 1 else f"Use smaller images than imgsz={size}, or a smaller model"
    return NotEnoughMemoryError(
        f"The memory of {device} ran out {_where(trainer)} with batch={batch} ({first_line(error)}). {advice}. "
        f"{_how_to_go_on(trainer, f' {smaller}' if batch > 1 else '')}",
        device=device,
        batch=batch,
        checkpoint=_checkpoint(trainer),
    )


def first_line(error: BaseException) -> str:
    """Return an error's first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _checkpoint(trainer: Any) -> str:
    return str(checkpoint_of(trainer) or "")


def _how_to_go_on(trainer: Any, more: str = "") -> str:
    checkpoint = _checkpoint(trainer)
    if not checkpoint:
        return "Nothing was saved of this run yet: start it again."
    return f"{checkpoint} is whole: go on with `yolo train resume=True {quoted(f'model={checkpoint}')}{more}`."


def _where(trainer: Any) -> str:
    epoch = getattr(trainer, "epoch", None)
    return "before the first epoch" if epoch is None else f"in epoch {epoch + 1} of {trainer.epochs}"
