"""The devices to measure, and a description of them and of the software."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ... import __version__, devices
from ...plugins import manager
from ..measurement.devices import xpu
from .results import Device

__all__ = ["describe", "find_devices"]

# Environment variables with these prefixes change which devices there are, or how fast they are.
_VARIABLES = ("ONEAPI_", "OMP_NUM_THREADS", "PYTORCH_", "SYCL_", "UR_", "YOLO_XPU_", "ZE_")

_PROPERTIES = (
    "platform_name",
    "version",
    "total_memory",
    "max_compute_units",
    "gpu_eu_count",
    "has_fp16",
    "has_fp64",
    "has_subgroup_matrix_multiply_accumulate",
    "is_integrated_gpu",
)


def find_devices(requested: Sequence[str]) -> tuple[list[Device], list[str]]:
    """Find out which of the requested devices are available.

    Args:
        requested: Names as the user gave them.

    Returns:
        The devices, each once, and a note for each missing one, with its remedy.

    Raises:
        DeviceError: None is available, or an XPU's index is wrong although there are XPUs.
    """
    found: dict[str, Device] = {}
    missing: list[str] = []
    for name in requested:
        if name == "cpu":
            found["cpu"] = Device("cpu", _processor())
        elif reason := devices.why_none():
            missing.append(f"can't measure {name}: {reason.seen}. {reason.remedy}")
        else:
            indices = devices.resolve(name, prefer_xpu=True) or ()
            for device in map(xpu, map(devices.info, indices[:1])):
                found.setdefault(device.name, device)  # alone, too: several are compared with their first
            if len(indices) > 1:
                devices.check_collectives(indices)
                found[name] = _together(name, indices)
    if not found:
        devices.resolve(requested[0], prefer_xpu=True)  # raises the error that explains it
    return list(found.values()), missing


def _together(name: str, indices: tuple[int, ...]) -> Device:
    each = [xpu(devices.info(index)) for index in indices]
    titles = Counter(device.title for device in each)
    return replace(
        each[0],
        name=name,
        title=", ".join(f"{count} x {title}" for title, count in titles.items()),
        has_fp16=all(device.has_fp16 for device in each),
        indices=indices,
    )


def _processor() -> str:
    from ultralytics.utils.torch_utils import get_cpu_info

    name = str(get_cpu_info())
    return name if name and name != "unknown" else platform.processor() or platform.machine()


def describe(measured: Sequence[Device]) -> dict[str, Any]:
    """Return a description of the devices and the software, as JSON values."""
    from ultralytics import __version__ as ultralytics_version

    return {
        "devices": [_describe_device(device) for device in measured],
        "os": _system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ultralytics": ultralytics_version,
        "yolo_xpu_trainer": __version__,
        "plugins": sorted(name for name, _ in manager().list_name_plugin()),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
    }


def _describe_device(device: Device) -> dict[str, Any]:
    described = {name: getattr(device, name) for name in ("name", "title", "driver", "simulated")}
    if device.index is not None:
        properties: Any = torch.xpu.get_device_properties(device.index)
        for name in _PROPERTIES:
            if hasattr(properties, name):
                value = getattr(properties, name)
                described[name] = value if isinstance(value, (bool, int)) else str(value)
    return described


def _system() -> str:
    if sys.platform != "linux":
        return platform.platform(terse=True)
    try:
        distribution = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        distribution = "Linux"
    return f"{distribution}, kernel {platform.release()}"
