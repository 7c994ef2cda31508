"""Avoid a sync a step in the progress line: it shows losses that were read up to half a second ago."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..patches import Patch, patch
from ..run import Run

__all__ = ["LossMeans", "Readings"]

LOG_EVERY = Option(
    "log_every",
    0.5,
    "how old, in seconds, the losses in the progress line may be, because reading them waits for the GPU; "
    "an epoch's last are exact; `0` reads them with every batch",
)
_NAME = "tloss"  # the trainer's attribute with the epoch's mean losses: a dict since 8.4.105, a tensor before


@hookimpl
def xpu_options() -> list[Option[float]]:
    return [LOG_EVERY]


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Let the trainer's mean losses be such that the progress line formats a recent reading of them."""
    run: Run = trainer.xpu
    from ultralytics.engine.trainer import BaseTrainer

    owner = next((c for c in type(trainer).__mro__ if _NAME in vars(c)), None)
    if not run.options[LOG_EVERY] or owner is not None:
        yield
        return
    setattr(BaseTrainer, _NAME, _ShownLosses(Readings(run.options[LOG_EVERY])))
    try:
        yield
    finally:
        delattr(BaseTrainer, _NAME)  # a trainer keeps its losses where it had them: in its own dict


class _ShownLosses:
    """The attribute `tloss` of a trainer, whose values the progress line formats after every batch."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings
        self._batches = 0

    def __get__(self, trainer: Any, kind: type | None = None) -> Any:
        if trainer is None:
            return self
        try:
            return vars(trainer)[_NAME]
        except KeyError:
            raise AttributeError(_NAME) from None

    def __set__(self, trainer: Any, means: Any) -> None:
        self._batches = 0 if means is None else self._batches + 1
        if isinstance(means, dict) and not isinstance(means, LossMeans) and getattr(trainer, "xpu", None) is not None:
            if self._batches == _length(trainer.train_loader):
                self._readings.expire()
            means = LossMeans(means, self._readings)
        vars(trainer)[_NAME] = means


def _length(loader: Any) -> int:
    return len(loader) if hasattr(loader, "__len__") else -1


@patch(
    "ultralytics.engine.trainer:BaseTrainer.run_callbacks",
    why="callbacks would see the losses as the progress line shows them, rather than as they are",
)
def run_callbacks(original: Callable[..., Any], self: Any, event: str) -> Any:
    """Run callbacks, which see the exact losses."""
    shown = vars(self).get(_NAME)
    if not isinstance(shown, LossMeans):
        return original(self, event)
    exact = vars(self)[_NAME] = dict(shown)
    try:
        return original(self, event)
    finally:
        if vars(self).get(_NAME) is exact:
            vars(self)[_NAME] = shown


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Show callbacks the exact losses."""
    return [run_callbacks] if trainer.xpu.options[LOG_EVERY] else []


class LossMeans(dict[str, torch.Tensor]):
    """A training epoch's mean losses, whose `values()`, which the progress line formats, lag behind.

    Items, which everything else reads (the loggers, the epoch's end), are the tensors, exact.
    """

    def __init__(self, means: dict[str, torch.Tensor], readings: Readings) -> None:
        super().__init__(means)
        self._readings = readings

    def values(self) -> Any:
        """Return the losses as of the last reading, each as something that formats as a number."""
        return self._readings.of(self)


class Readings:
    """What was last read of the losses, and when.

    Args:
        seconds: How old a reading may be.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._read_at = -float("inf")
        self._values: list[float] = []

    def expire(self) -> None:
        """Read anew when asked next."""
        self._read_at = -float("inf")

    def of(self, means: dict[str, torch.Tensor]) -> Iterator[float]:
        """Return the means as numbers, read from the device if the last reading is too old."""
        now = time.monotonic()
        if now - self._read_at >= self._seconds or len(self._values) != len(means):
            self._values = torch.stack([value.detach().float().reshape(()) for value in dict.values(means)]).tolist()
            self._read_at = time.monotonic()
        return iter(self._values)
