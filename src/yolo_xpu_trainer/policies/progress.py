"""The progress line shows the losses of a moment ago, so that the host doesn't wait for the device in every step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..run import Run

__all__ = ["LossMeans", "Readings"]


@hookimpl
def xpu_loss_means(trainer: Any, means: dict[str, Any], last: bool) -> dict[str, Any] | None:
    """Show the last reading until it is `xpu_log_every` seconds old, and the losses of an epoch's last batch."""
    run: Run = trainer.xpu
    if not run.options.log_every:
        return None
    if run.readings is None:
        run.readings = Readings(run.options.log_every)
    if last:
        run.readings.expire()
    return LossMeans(means, run.readings)


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
