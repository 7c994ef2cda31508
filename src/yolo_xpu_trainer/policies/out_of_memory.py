"""Memory that runs out is one error, `torch.OutOfMemoryError`, whatever its text, and a lost device is never that.

Ultralytics goes by the words "out of memory", which errors of kernels don't have. With a limit for the process
PyTorch's allocator refuses before the driver fails.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..device_errors import DeviceLostError, NotEnoughMemoryError, is_lost, is_out_of_memory, responds
from ..devices import DeviceInfo, info
from ..files import quoted
from ..hookspecs import hookimpl
from ..patches import Patch, patch
from ..run import Run, StashKey, checkpoint_of

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
        if failed := run.stash.get(_FAILED_STEP, ""):
            run.stash[_FAILED_STEP] = ""
            raise torch.OutOfMemoryError(failed)
        with _one_error(run.device.device), original(*args, **kwargs):
            yield

    return entered()


@patch("torch:Tensor.backward", why="a kernel that runs out of memory doesn't say 'out of memory'", everywhere=False)
def backward(run: Run, original: Callable[..., Any], self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Compute the gradients."""
    with _one_error(run.device.device):
        return original(self, *args, **kwargs)


_FAILED_STEP = StashKey[str]()
"""The text of an error in an optimizer's step, which the next forward raises: only that is where Ultralytics halves."""


@patch(
    "ultralytics.engine.trainer:BaseTrainer.optimizer_step",
    why="the optimizer makes its state in its first step, and memory that runs out there ends the run",
)
def optimizer_step(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Step; where memory runs out, leave the step out, and have the batch halved in the next forward.

    Weights that the optimizer had updated by then stay so: it works through its groups one by one.
    """
    try:
        with _one_error(run.device.device):
            return original(self, *args, **kwargs)
    except torch.OutOfMemoryError as error:
        if not _halves_the_batch():
            raise
        run.stash[_FAILED_STEP] = str(error)
    self.optimizer.zero_grad()
    with contextlib.suppress(AssertionError):  # of a scaler that hasn't got as far as the gradients
        self.scaler.update()
    return None


@functools.cache
def _halves_the_batch() -> bool:
    """Whether this Ultralytics goes on with a smaller batch, as it does from 8.4.20 or so on."""
    from ultralytics.engine.trainer import BaseTrainer

    return hasattr(BaseTrainer, "_build_train_pipeline")


def _validating(trainer: Any) -> Patch:
    """Return a patch that gives a run's validation a smaller batch of its own, where memory runs out in it."""

    @patch(
        "ultralytics.engine.validator:BaseValidator.__call__",
        why="validation takes twice the training's batch, and memory that runs out in it ends the run",
    )
    def call(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        """Validate, again with half the batch as often as memory runs out."""
        while True:
            try:
                with _one_error(run.device.device):
                    return original(self, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                batch = int(getattr(self.dataloader, "batch_size", 0) or 0)
                if self is not trainer.validator or batch < 2 or len(run.indices) > 1:
                    raise
                seen = _first_line(error)
            _LOGGER.warning(
                f"XPU: memory ran out in validation with batch={batch} ({seen}). Validating again with {batch // 2}, "
                "from now on; training keeps its batch."
            )
            _replace_loader(trainer, batch // 2)

    return call


def _replace_loader(trainer: Any, batch: int) -> None:
    """Give a trainer's validation another batch."""
    before = trainer.validator.dataloader
    if hasattr(before, "close"):
        before.close()
    trainer._clear_memory()
    data = getattr(trainer, "testset", None) or trainer.data.get("val") or trainer.data.get("test")
    trainer.test_loader = trainer.get_dataloader(data, batch_size=batch, rank=-1, mode="val")
    trainer.validator.dataloader = trainer.test_loader


@hookimpl(trylast=True)  # around the run's own autocast
def xpu_patches(trainer: Any) -> list[Patch]:
    return [autocast, backward, optimizer_step, _validating(trainer)]


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Limit what the process may take of the device, and say how a run goes on that it ended.

    Raises:
        DeviceLostError: The device is lost.
        NotEnoughMemoryError: There isn't enough memory, whatever the batch.
    """
    run: Run = trainer.xpu
    with _limited(_of_this_process(run)):
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


def _of_this_process(run: Run) -> DeviceInfo:
    """Return the XPU that this process will train on: a worker learns of its own only when it sets up its group."""
    rank = int(os.environ["LOCAL_RANK"]) if run.is_worker else 0
    return info(run.indices[rank]) if rank < len(run.indices) else run.device


_LEAST_SHARE = 0.5  # what others hold as a run begins they may not hold all night


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
    usable = max(usable, _LEAST_SHARE)
    limit(min(before, usable, 1.0), device.index)
    try:
        yield
    finally:
        limit(before, device.index)


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
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
