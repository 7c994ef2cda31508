"""Memory that runs out is one error, `torch.OutOfMemoryError`, whatever its text, and a lost device is never that.

Ultralytics goes by the words "out of memory", which errors of kernels don't have. With a limit for the process
PyTorch's allocator refuses before the driver fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..device_errors import DeviceLostError, NotEnoughMemoryError, is_lost, is_out_of_memory, responds
from ..devices import DeviceInfo
from ..hookspecs import hookimpl
from ..patches import Patch, patch
from ..run import Run

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")


@contextmanager
def _one_error(device: torch.device) -> Iterator[None]:
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


@patch(
    "ultralytics.engine.trainer:autocast",
    why="a kernel that runs out of memory doesn't say 'out of memory'",
    everywhere=False,
)
def autocast(run: Run, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Enter Ultralytics' autocast, in which a forward and the loss are computed."""

    @contextmanager
    def entered() -> Iterator[None]:
        with _one_error(run.device.device), original(*args, **kwargs):
            yield

    return entered()


@patch("torch:Tensor.backward", why="a kernel that runs out of memory doesn't say 'out of memory'", everywhere=False)
def backward(run: Run, original: Callable[..., Any], self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Compute the gradients."""
    with _one_error(run.device.device):
        return original(self, *args, **kwargs)


@hookimpl(trylast=True)  # around the run's own autocast
def xpu_patches(trainer: Any) -> list[Patch]:
    return [autocast, backward]


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Limit what the process may take of the device, and say how a run goes on that it ended.

    Raises:
        DeviceLostError: The device is lost.
        NotEnoughMemoryError: There isn't enough memory, whatever the batch.
    """
    run: Run = trainer.xpu
    with _limited(run.device):
        try:
            yield
        except (DeviceLostError, NotEnoughMemoryError):
            raise
        except RuntimeError as error:
            if is_lost(error):
                raise _lost(trainer, error) from error
            if is_out_of_memory(error):
                raise _not_enough(trainer, error) from error
            raise


@contextmanager
def _limited(device: DeviceInfo) -> Iterator[None]:
    """Let the allocator take no more than the device has free by now, where PyTorch can (2.10) and that is known."""
    limit = getattr(torch.xpu, "set_per_process_memory_fraction", None)
    free = None if device.integrated else device.free_memory()
    if limit is None or not device.total_memory:
        yield
        return
    before = torch.xpu.get_per_process_memory_fraction(device.index)
    usable = 1.0 if free is None else (free + device.reserved_memory()) / device.total_memory
    limit(min(before, usable, 1.0), device.index)
    try:
        yield
    finally:
        limit(before, device.index)


def _checkpoint(trainer: Any) -> str:
    last = Path(getattr(trainer, "last", ""))
    return str(last) if last.is_file() else ""


def _how_to_go_on(trainer: Any, more: str = "") -> str:
    checkpoint = _checkpoint(trainer)
    if not checkpoint:
        return "Nothing was saved of this run yet: start it again."
    return f"{checkpoint} is whole: go on with `yolo train resume=True model={checkpoint}{more}`."


def _where(trainer: Any) -> str:
    epoch = getattr(trainer, "epoch", None)
    return "before the first epoch" if epoch is None else f"in epoch {epoch + 1} of {trainer.epochs}"


def _lost(trainer: Any, error: RuntimeError) -> DeviceLostError:
    device = str(trainer.xpu.device)
    return DeviceLostError(
        f"{device} was lost {_where(trainer)} ({_first_line(error)}): the driver reset it, most often because memory "
        f"ran out or a kernel took too long. This process can't use it any more. {_how_to_go_on(trainer)}",
        device=device,
        checkpoint=_checkpoint(trainer),
    )


def _not_enough(trainer: Any, error: RuntimeError) -> NotEnoughMemoryError:
    device, batch = str(trainer.xpu.device), int(getattr(trainer, "batch_size", 0) or 0)
    size = getattr(trainer.args, "imgsz", None)
    smaller = f"batch={max(batch // 2, 1)}"
    advice = f"Use {smaller}" if batch > 1 else f"Use smaller images than imgsz={size}, or a smaller model"
    return NotEnoughMemoryError(
        f"The memory of {device} ran out {_where(trainer)} with batch={batch} ({_first_line(error)}). {advice}. "
        f"{_how_to_go_on(trainer, f' {smaller}' if batch > 1 else '')}",
        device=device,
        batch=batch,
        checkpoint=_checkpoint(trainer),
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200]
