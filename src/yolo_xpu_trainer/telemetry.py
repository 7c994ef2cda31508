"""What an XPU's driver tells of the device while it works, read in a thread."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["READINGS", "Sampler", "reading"]

READINGS = ("utilization", "power_draw", "temperature", "clock_rate", "memory_usage")
"""Functions of `torch.xpu` (from 2.14 or so on, with the package pyzes): in %, W, °C, MHz, and % of the bandwidth."""


def reading(name: str) -> Callable[[int], float] | None:
    """Return the function of `torch.xpu` that takes a reading of a device, or None where this release has none."""
    function: Any = getattr(torch.xpu, name, None)
    return function if callable(function) else None


class Sampler:
    """Takes readings until it is stopped.

    A reading of utilization, power or bandwidth takes 0.1 s, during which the thread sleeps. The device isn't waited
    for: the driver is asked.

    Args:
        index: The XPU's index; None for a CPU, which has no readings.
        names: What to read, of `READINGS`.
        every: How many seconds pass between two rounds of readings.

    Attributes:
        readings: What was read so far, by name.
    """

    def __init__(self, index: int | None, names: Sequence[str], every: float = 0.1) -> None:
        self.readings: dict[str, list[float]] = {}
        self._index = index
        self._names = [name for name in names if reading(name)] if index is not None else []
        self._every = every
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="xpu-telemetry", daemon=True)

    def start(self) -> None:
        """Start the readings."""
        if self._names:
            self._thread.start()

    def stop(self) -> dict[str, float]:
        """End the readings, and return the median of each."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)  # a driver that hangs must not keep a run from its end
        return {name: statistics.median(values) for name, values in self.readings.items()}

    def _read(self) -> None:
        assert self._index is not None
        while self._names and not self._stopped.wait(self._every):  # some readings return at once
            for name in list(self._names):
                if self._stopped.is_set():
                    return
                function = reading(name)
                try:
                    value = float(function(self._index)) if function else None
                except Exception:  # pyzes isn't installed, or the sensor became unavailable: what was read is kept
                    value = None
                if value is None:
                    self._names = [other for other in self._names if other != name]
                else:
                    self.readings.setdefault(name, []).append(value)
