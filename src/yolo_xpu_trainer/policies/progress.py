"""Avoid a sync a step in the progress line: it shows losses that were read up to half a second ago."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FrameType
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..run import Run, StashKey
from ..stopwatch import LOSSES, timed

__all__ = ["Readings", "ShownLosses"]

LOG_EVERY = Option(
    "log_every",
    0.5,
    "how old, in seconds, the losses in the progress line may be, because reading them waits for the GPU; "
    "an epoch's last are exact; `0` reads them with every batch",
)
_NAME = "tloss"  # the trainer's attribute with the epoch's mean losses: a dict since 8.4.105, a tensor before
_LOOP = ("ultralytics.engine.trainer", "_do_train")  # who formats the progress line
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@hookimpl
def xpu_options() -> list[Option[float]]:
    return [LOG_EVERY]


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Give Ultralytics' training loop, and nobody else, mean losses whose values are a recent reading."""
    run: Run = trainer.xpu
    if not run.options[LOG_EVERY]:
        yield
        return
    from ultralytics.engine.trainer import BaseTrainer

    run.stash[_READINGS] = Readings(run.options[LOG_EVERY], partial(timed, run, LOSSES))
    if _NAME in vars(BaseTrainer):  # of a run within which this one was begun
        yield
        return
    setattr(BaseTrainer, _NAME, _MeanLosses())
    try:
        yield
    finally:
        delattr(BaseTrainer, _NAME)  # a trainer keeps its losses where it had them: in its own dict


class _MeanLosses:
    """The attribute `tloss` of trainers: what they keep in their own dict, but for the loop that shows it.

    A trainer's class that has such an attribute of its own is asked instead, as it comes first.
    """

    def __get__(self, trainer: Any, kind: type | None = None) -> Any:
        if trainer is None:
            return self
        try:
            means = vars(trainer)[_NAME]
        except KeyError:
            raise AttributeError(f"{type(trainer).__name__!r} object has no attribute {_NAME!r}") from None
        run = _run_with_readings(trainer)
        if run is None or vars(trainer).get("stop"):  # an epoch that ends early shows no line for its last batch
            return means
        return run.recovery.calling(_shown, run, means, sys._getframe(1), instead=lambda *_: means)

    def __set__(self, trainer: Any, means: Any) -> None:
        vars(trainer)[_NAME] = means
        run = _run_with_readings(trainer)
        if run is not None and _is_loop(sys._getframe(1)):
            run.recovery.calling(_note, trainer, means)

    def __delete__(self, trainer: Any) -> None:
        if vars(trainer).pop(_NAME, self) is self:
            raise AttributeError(_NAME)


def _run_with_readings(trainer: Any) -> Run | None:
    run = getattr(trainer, "xpu", None)
    return run if isinstance(run, Run) and _READINGS in run.stash else None


def _shown(run: Run, means: Any, caller: FrameType) -> Any:
    """Return what a caller gets as the mean losses: the loop that shows them gets a recent reading."""
    readings = run.stash[_READINGS]
    if not readings.awaited or not _is_loop(caller):
        return means
    if _are_one_tensor(means):
        shown: ShownVector | ShownScalar = means.as_subclass(ShownVector if means.dim() else ShownScalar)
        shown._run = run
        return shown
    return ShownLosses(means, run) if _can_be_read(means) else means


def _note(trainer: Any, means: Any) -> None:
    trainer.xpu.stash[_READINGS].note(means is None, _length(trainer.train_loader))


def _is_loop(frame: Any) -> bool:
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) == _LOOP


def _can_be_read(means: Any) -> bool:
    """Whether these are losses on the device that one copy reads, and a line shows, as exactly as one by one."""
    return type(means) is dict and all(
        isinstance(v, torch.Tensor) and v.device.type == "xpu" and v.dtype in _DTYPES and v.numel() == 1
        for v in means.values()
    )


def _are_one_tensor(means: Any) -> bool:
    """Whether these are losses as Ultralytics before 8.4.105 has them, on the device: a classifier's is one number."""
    return (
        type(means) is torch.Tensor
        and means.dim() <= 1
        and 0 < means.numel() < 32
        and means.device.type == "xpu"
        and means.dtype in _DTYPES
    )


def _length(loader: Any) -> int:
    return len(loader) if hasattr(loader, "__len__") else -1


class ShownLosses(dict[str, torch.Tensor]):
    """A training epoch's mean losses, whose `values()`, which the progress line formats, lag behind."""

    def __init__(self, means: dict[str, torch.Tensor], run: Run) -> None:
        super().__init__(means)
        self._run = run

    def values(self) -> Any:
        """Return the losses as of the last reading, as numbers."""
        return self._run.recovery.calling(self._run.stash[_READINGS].of, self, instead=dict.values)


class ShownVector(torch.Tensor):
    """A training epoch's mean losses in one tensor, whose numbers, which the progress line formats, lag behind.

    In everything but going through it, it is the tensor on the device.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _run: Run

    def __iter__(self) -> Any:
        plain = self.as_subclass(torch.Tensor)  # type: ignore[no-untyped-call]
        return iter(self._run.recovery.calling(self._run.stash[_READINGS].of_vector, plain, instead=torch.Tensor.cpu))


class ShownScalar(torch.Tensor):
    """A classifier's mean loss of a training epoch, of which the progress line makes a vector to go through.

    In everything else it is the tensor on the device.
    """

    _run: Run

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch's."""
        with torch._C.DisableTorchFunctionSubclass():
            made = function(*args, **(kwargs or {}))
        if function is torch.unsqueeze and args and type(args[0]) is cls:
            made = made.as_subclass(ShownVector)
            made._run = args[0]._run
        return made


class Readings:
    """What was last read of a trainer's losses, and when.

    Args:
        seconds: How old a reading may be.
        reading: Makes the context in which the device is waited for.

    Attributes:
        awaited: Whether a batch's losses weren't shown yet.
    """

    def __init__(self, seconds: float, reading: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.awaited = False
        self._seconds = seconds
        self._reading = reading
        self._batches = 0
        self._read_at = -float("inf")
        self._values: dict[str, float] = {}
        self._vector: torch.Tensor | None = None

    def note(self, starts: bool, length: int) -> None:
        """Note that an epoch starts, or that a batch's losses are there, the last of which are read anew.

        Args:
            starts: Whether an epoch starts.
            length: How many batches it has.
        """
        self.awaited = not starts
        self._batches = 0 if starts else self._batches + 1
        if self._batches == length:
            self._read_at = -float("inf")

    def of_vector(self, means: torch.Tensor) -> torch.Tensor:
        """Return mean losses on the host, read from the device if the last reading is too old."""
        now = time.monotonic()
        if now - self._read_at >= self._seconds or self._vector is None or self._vector.shape != means.shape:
            with self._reading():
                self._vector = means.detach().cpu()
            self._read_at = time.monotonic()
        self.awaited = False
        return self._vector

    def of(self, means: dict[str, torch.Tensor]) -> list[float]:
        """Return the means as numbers, read from the device if the last reading is too old."""
        now = time.monotonic()
        if now - self._read_at >= self._seconds or list(self._values) != list(means):
            joined = torch.stack([value.detach().float().reshape(()) for value in dict.values(means)])
            with self._reading():
                read = joined.tolist()
            self._values = dict(zip(means, read, strict=True))
            self._read_at = time.monotonic()
        self.awaited = False
        return list(self._values.values())


_READINGS = StashKey[Readings]()
