"""A trainer's memory figures and its cache are those of its XPU, and a plugin may give the figures."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from .. import devices
from ..patches import patch
from ..plugins import hooks

__all__ = ["PATCHES"]


def _used(trainer: Any) -> tuple[int, int]:
    """Return the bytes in use on a trainer's XPU, and its total."""
    run = getattr(trainer, "xpu", None)
    device = run.device if run else devices.info(trainer.device.index or 0)
    return hooks().xpu_memory(device=device) or (device.reserved_memory(), device.total_memory)


@patch(
    "ultralytics.engine.trainer:BaseTrainer._get_memory",
    why="from 8.3.100 to 8.4.110 it asks CUDA for the properties of an XPU at the end of every epoch, and fails; on "
    "every version a plugin's figures would not be shown",
)
def get_memory(original: Callable[..., Any], self: Any, fraction: bool = False) -> Any:
    """Return the memory in use in GiB, or as a fraction of the total."""
    if self.device.type != "xpu":
        return original(self, *([fraction] if fraction else []))
    used, total = _used(self)
    return used / total if fraction else used / 2**30


@patch("ultralytics.engine.trainer:BaseTrainer._clear_memory", why="before 8.4.111 it empties CUDA's cache instead")
def clear_memory(original: Callable[..., Any], self: Any, threshold: float | None = None) -> Any:
    """Empty the allocator's cache, where more than a fraction of the memory is in use."""
    if self.device.type != "xpu":
        return original(self, *([] if threshold is None else [threshold]))
    used, total = _used(self)
    if threshold is None or used / total > threshold:
        gc.collect()
        devices.empty_cache(self.device.index or 0)
    return None


PATCHES = [get_memory, clear_memory]
