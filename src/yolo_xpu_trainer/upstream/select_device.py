"""Rows for device semantics: what a `device` means on every Ultralytics, and that none means the XPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from .. import devices
from .rows import Row

__all__ = ["ROWS"]

_LOGGER = logging.getLogger("ultralytics")


def _select_device(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    def select_device(device: Any = "", *args: Any, **kwargs: Any) -> Any:
        """Return the XPU that a request means, or what Ultralytics makes of it."""
        indices = devices.resolve(device, prefer_xpu=False)
        if indices is None:
            return original(device, *args, **kwargs)
        if len(indices) == 1:
            torch.xpu.set_device(indices[0])
        if kwargs.get("verbose", True):
            from ultralytics import __version__

            names = ", ".join(str(devices.info(i)) for i in indices)
            _LOGGER.info(f"Ultralytics {__version__} 🚀 torch-{torch.__version__} {names}")
        return torch.device("xpu", indices[0])

    return select_device


def _parse_device(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    def parse_device(device: Any = "") -> Any:
        """Return the canonical string of the XPUs that a request means, or what Ultralytics makes of it."""
        indices = devices.resolve(device, prefer_xpu=False)
        return original(device) if indices is None else "xpu:" + ",".join(map(str, indices))

    return parse_device


ROWS = [
    Row(
        target="ultralytics.utils.torch_utils:select_device",
        why="it knows no XPU before 8.4.111, never chooses one by itself, and takes an index for CUDA's only",
        source="ultralytics#16930, ultralytics#20964, ultralytics/utils/torch_utils.py",
        needed=lambda run, original: True,
        replacement=_select_device,
    ),
    Row(
        target="ultralytics.utils.torch_utils:parse_device",
        why="it knows no XPU from 8.4.87 to 8.4.110, and takes an index for CUDA's only",
        source="ultralytics/utils/torch_utils.py",
        needed=lambda run, original: True,
        replacement=_parse_device,
        optional=True,
    ),
]
