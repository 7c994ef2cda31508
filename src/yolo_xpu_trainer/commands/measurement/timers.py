"""What measures a window: the wall clock, or the device's own, by its events."""

from __future__ import annotations

import functools
import time
from typing import Any, Protocol

import torch

__all__ = ["DeviceTimer", "Timer", "WallTimer", "timer"]


class Timer(Protocol):
    """Measures a time, once."""

    def start(self) -> None:
        """Begin, when the device has finished what it was given before."""

    def stop(self) -> float:
        """End, when the device has finished what it was given since; return the seconds."""


class WallTimer:
    """Measures by the host's clock, for which the device is waited for.

    Args:
        index: The XPU's index, None for a CPU.
    """

    def __init__(self, index: int | None) -> None:
        self._index = index
        self._began = 0.0

    def start(self) -> None:
        """Wait for the device, and begin."""
        self._began = self._now()

    def stop(self) -> float:
        """Wait for the device, and return the seconds."""
        return self._now() - self._began

    def _now(self) -> float:
        if self._index is not None:
            torch.xpu.synchronize(self._index)
        return time.perf_counter()


class DeviceTimer:
    """Measures by the device's clock: from an event that it reaches to another, idle or not in between.

    Args:
        index: The XPU's index.
    """

    def __init__(self, index: int | None) -> None:
        self._index = index
        self._began: Any = None

    def start(self) -> None:
        """Wait for the device, and record the first event."""
        torch.xpu.synchronize(self._index)
        self._began = _recorded()

    def stop(self) -> float:
        """Record the second event, wait for it, and return the seconds between both."""
        ended = _recorded()
        torch.xpu.synchronize(self._index)
        return float(self._began.elapsed_time(ended)) / 1e3


def _recorded() -> Any:
    event: Any = torch.xpu.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def timer(index: int | None) -> Timer:
    """Return a timer: the device's clock where its events tell the time, else the host's.

    Args:
        index: The XPU's index, None for a CPU.
    """
    return DeviceTimer(index) if index is not None and _events_tell_the_time(index) else WallTimer(index)


@functools.cache
def _events_tell_the_time(index: int) -> bool:
    """Whether events have times: not before torch 2.6 or so, nor where the driver's queues have none."""
    try:
        with torch.xpu.device(index):
            found = DeviceTimer(index)
            found.start()
            torch.ones(1024, device=f"xpu:{index}").cpu()
            return found.stop() > 0
    except (RuntimeError, ValueError):  # NotImplementedError is a RuntimeError
        return False
