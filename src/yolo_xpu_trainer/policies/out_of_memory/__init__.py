"""Memory that runs out is one error, `torch.OutOfMemoryError`, whatever its text, and a lost device is never that.

Ultralytics goes by the words "out of memory", which errors of kernels don't have. With a limit for the process
PyTorch's allocator refuses before the driver fails.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...device_errors import DeviceLostError, NotEnoughMemoryError, is_lost, is_out_of_memory
from ...devices import DeviceInfo, info
from ...hookspecs import hookimpl
from ...patches import Patch, patch
from ...run import Run, StashKey
from .halving import IN_TRAINING, build_train_pipeline, do_train
from .step import PENDING, optimizer_step
from .texts import first_line, lost, not_enough, one_error
from .thrash import watch

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")


_TIMES = StashKey[int]()
"""How often memory ran out in a run."""


@contextmanager
def _in_training(run: Run) -> Iterator[None]:
    """Raise one error, and note where it was."""
    try:
        with one_error(run.device.device):
            yield
    except torch.OutOfMemoryError:
        run.stash[IN_TRAINING] = True
        run.stash[_TIMES] = run.stash.get(_TIMES, 0) + 1
        raise


@patch(
    "ultralytics.engine.trainer:autocast",
    why="a kernel that runs out of memory doesn't say 'out of memory'",
    everywhere=False,
)
def autocast(run: Run, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Enter Ultralytics' autocast, in which a forward and the loss are computed."""

    @contextmanager
    def entered() -> Iterator[None]:
        with _in_training(run):
            if pending := run.stash.get(PENDING, ""):
                run.stash[PENDING] = ""
                raise torch.OutOfMemoryError(pending)
            with original(*args, **kwargs):
                yield

    return entered()


@patch("torch:Tensor.backward", why="a kernel that runs out of memory doesn't say 'out of memory'", everywhere=False)
def backward(run: Run, original: Callable[..., Any], self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Compute the gradients."""
    with _in_training(run):
        return original(self, *args, **kwargs)


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
                with one_error(run.device.device):
                    return original(self, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                batch = int(getattr(self.dataloader, "batch_size", 0) or 0)
                if self is not trainer.validator or batch < 2 or run.world_size > 1:
                    raise
                seen = first_line(error)
            _LOGGER.warning(
                f"XPU: memory ran out in validation with batch={batch} ({seen}). Validating again with {batch // 2}, "
                "from now on; training keeps its batch."
            )
            run.stash[_TIMES] = run.stash.get(_TIMES, 0) + 1
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
    return [autocast, backward, optimizer_step, do_train, build_train_pipeline, _validating(trainer)]


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Watch the allocator, and say at a run's end what it went through."""
    trainer.add_callback("on_train_batch_end", trainer.xpu.recovery.guarded(watch))
    trainer.add_callback("on_train_end", trainer.xpu.recovery.guarded(_say_at_the_end))


def _say_at_the_end(trainer: Any) -> None:
    times = trainer.xpu.stash.get(_TIMES, 0)
    if times:
        batch, of_validation = trainer.batch_size, getattr(trainer.validator.dataloader, "batch_size", None)
        _LOGGER.warning(
            f"XPU: memory ran out {times} time{'s' * (times > 1)} in this run, which ended with batch={batch} "
            f"in training and {of_validation} in validation. A run with batch={batch} from its start doesn't lose the "
            "parts of epochs that were done again."
        )


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
                raise lost(trainer, error) from error
            if is_out_of_memory(error):
                raise not_enough(trainer, error) from error
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
