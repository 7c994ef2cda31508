"""What the driver tells of a busy XPU: read beside a window, in a thread of its own."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from typing import Any

import torch

from .isolation import first_line

__all__ = ["READINGS", "Sampler", "readable"]

READINGS = {
    "utilization": "%",
    "power_draw": "W",
    "temperature": "°C",
    "clock_rate": "MHz",
    "memory_usage": "% of the memory's bandwidth",
}
"""Functions of `torch.xpu` (from 2.14 or so on, with the package pyzes), and the unit of each."""


def readable(index: int) -> tuple[list[str], str]:
    """Find out what the driver tells.

    Args:
        index: The XPU's.

    Returns:
        The names of the readings that there are, and a note on the others, "" where there are none.
    """
    found: list[str] = []
    failed: dict[str, list[str]] = {}
    for name in READINGS:
        function = _function(name)
        if function is None:
            failed.setdefault(f"torch {torch.__version__} has no such function", []).append(name)
            continue
        try:
            function(index)
        except Exception as error:  # pyzes is absent, the driver has no such sensor, or it takes a privilege
            failed.setdefault(first_line(error), []).append(name)
        else:
            found.append(name)
    reasons = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in failed.items())
    return found, f"xpu:{index} doesn't tell its {reasons}." if reasons else ""


def _function(name: str) -> Callable[[int], float] | None:
    function: Any = getattr(torch.xpu, name, None)
    return function if callable(function) else None


class Sampler:
    """Reads as long as a window lasts.

    Each of the readings of utilization, power and bandwidth takes a tenth of a second, which the thread sleeps through.

    Args:
        index: The XPU's index; None for a CPU, of which nothing is read.
        names: What to read, of `READINGS`.
    """

    def __init__(self, index: int | None, names: list[str]) -> None:
        self._index = index
        self._names = names if index is not None else []
        self._readings: dict[str, list[float]] = {}
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._read, name="xpu-telemetry", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        if self._names:
            self._thread.start()

    def stop(self) -> dict[str, float]:
        """Read no more, and return the median of each reading."""
        self._enough.set()
        if self._thread.ident is not None:
            self._thread.join()
        return {name: statistics.median(values) for name, values in self._readings.items()}

    def _read(self) -> None:
        assert self._index is not None
        while self._names and not self._enough.wait(0.1):  # not without a pause: some readings come at once
            for name in list(self._names):
                if self._enough.is_set():
                    return
                function = _function(name)
                try:
                    value = float(function(self._index)) if function else None
                except Exception:  # a sensor that was there and is gone: what it told stands
                    value = None
                if value is None:
                    self._names = [other for other in self._names if other != name]
                else:
                    self._readings.setdefault(name, []).append(value)
