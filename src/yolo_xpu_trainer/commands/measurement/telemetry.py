"""Readings of a busy XPU's driver, taken in a thread while a window is measured."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from typing import Any

import torch

from .isolation import first_line

__all__ = ["READINGS", "Sampler", "readable"]

READINGS = ("utilization", "power_draw", "temperature", "clock_rate", "memory_usage")
"""Functions of `torch.xpu` (from 2.14 or so on, with the package pyzes): in %, W, °C, MHz, and % of the bandwidth."""


def readable(index: int) -> tuple[list[str], str]:
    """Find out which readings the driver provides.

    Args:
        index: The XPU's.

    Returns:
        The names of the available readings, and a note on the others, "" if there are none.
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
        except Exception as error:  # pyzes isn't installed, there is no such sensor, or a privilege is missing
            failed.setdefault(first_line(error), []).append(name)
        else:
            found.append(name)
    reasons = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in failed.items())
    return found, f"xpu:{index} provides no readings of {reasons}." if reasons else ""


def _function(name: str) -> Callable[[int], float] | None:
    function: Any = getattr(torch.xpu, name, None)
    return function if callable(function) else None


class Sampler:
    """Takes readings during a window.

    A reading of utilization, power or bandwidth takes 0.1 s, during which the thread sleeps.

    Args:
        index: The XPU's index; None for a CPU, which has no readings.
        names: What to read, of `READINGS`.
    """

    def __init__(self, index: int | None, names: list[str]) -> None:
        self._index = index
        self._names = names if index is not None else []
        self._readings: dict[str, list[float]] = {}
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
            self._thread.join()
        return {name: statistics.median(values) for name, values in self._readings.items()}

    def _read(self) -> None:
        assert self._index is not None
        while self._names and not self._stopped.wait(0.1):  # some readings return at once
            for name in list(self._names):
                if self._stopped.is_set():
                    return
                function = _function(name)
                try:
                    value = float(function(self._index)) if function else None
                except Exception:  # the sensor became unavailable: its readings so far are kept
                    value = None
                if value is None:
                    self._names = [other for other in self._names if other != name]
                else:
                    self._readings.setdefault(name, []).append(value)
