"""What a `device` means on every Ultralytics, and that none means the XPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from .. import devices, unused_gpu
from ..patches import patch
from ..plugins import check_environment

__all__ = ["PATCHES"]

_LOGGER = logging.getLogger("ultralytics")


@patch(
    "ultralytics.utils.torch_utils:select_device",
    why="it has no XPU support before 8.4.111, never chooses an XPU by itself, and reads an index as CUDA's",
    source="ultralytics#16930, ultralytics#20964",
)
def select_device(original: Callable[..., Any], device: Any = "", *args: Any, **kwargs: Any) -> Any:
    """Return the XPU that a request means, or what Ultralytics makes of it."""
    indices = devices.resolve(device, prefer_xpu=False)
    if indices is None:
        if device is None or device == "":
            unused_gpu.tell()
        return original(device, *args, **kwargs)
    check_environment()  # every mode comes by here, before it loads data
    if len(indices) == 1:
        torch.xpu.set_device(indices[0])
    if kwargs.get("verbose", True):
        from ultralytics import __version__

        names = ", ".join(str(devices.info(i)) for i in indices)
        _LOGGER.info(f"Ultralytics {__version__} 🚀 torch-{torch.__version__} {names}")
    return torch.device("xpu", indices[0])


@patch(
    "ultralytics.utils.torch_utils:parse_device",
    why="it has no XPU support from 8.4.87 to 8.4.110, and reads an index as CUDA's",
    optional=True,
)
def parse_device(original: Callable[..., Any], device: Any = "") -> Any:
    """Return the canonical string of the XPUs that a request means, or what Ultralytics makes of it."""
    indices = devices.resolve(device, prefer_xpu=False)
    return original(device) if indices is None else "xpu:" + ",".join(map(str, indices))


@patch(
    "ultralytics.utils.benchmarks:ProfileModels.__init__",
    why="it takes every device but the CPU for one of NVIDIA's, and fails where TensorRT isn't installed",
)
def profile_models(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    """Profile models, on an XPU without TensorRT."""
    original(self, *args, **kwargs)
    if self.device.type == "xpu":
        self.trt = False


PATCHES = [select_device, parse_device, profile_models]
