"""The devices to measure, and what they and the software around them are."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch

from ... import __version__, devices
from ...plugins import manager
from .results import Target

__all__ = ["describe", "find_devices"]

# Variables by these names change which devices there are, or how fast.
_VARIABLES = ("ONEAPI_", "OMP_NUM_THREADS", "PYTORCH_", "SYCL_", "UR_", "YOLO_XPU_", "ZE_")


def find_devices(requested: Sequence[str]) -> tuple[list[Target], list[str]]:
    """Find out which of the devices asked for are here.

    Args:
        requested: Names as the user gave them.

    Returns:
        The devices, each once, and a note for each request that can't be met, with what mends it.

    Raises:
        DeviceError: None is here, or an XPU's index is wrong although there are XPUs.
    """
    targets: dict[str, Target] = {}
    absent: list[str] = []
    for name in requested:
        if name == "cpu":
            targets["cpu"] = Target("cpu", _processor())
        elif reason := devices.why_none():
            absent.append(f"{name} can't be measured: {reason.seen}. {reason.remedy}")
        else:
            for index in devices.resolve(name, prefer_xpu=True) or ():
                target = _xpu(devices.info(index))
                targets[target.name] = target
    if not targets:
        devices.resolve(requested[0], prefer_xpu=True)  # raises, and says why
    return list(targets.values()), absent


def _xpu(device: devices.DeviceInfo) -> Target:
    title = str(device).removeprefix(f"xpu:{device.index} ")
    properties: Any = torch.xpu.get_device_properties(device.index)
    simulated = "simulated" in str(getattr(properties, "platform_name", "")).lower()
    return Target(str(device.device), title, device.driver, device.index, device.has_fp16, simulated)


def _processor() -> str:
    from ultralytics.utils.torch_utils import get_cpu_info

    name = str(get_cpu_info())
    return name if name and name != "unknown" else platform.processor() or platform.machine()


def describe(targets: Sequence[Target]) -> dict[str, Any]:
    """Return what the figures were measured on and with, as values that JSON knows."""
    from ultralytics import __version__ as ultralytics_version

    return {
        "devices": [_describe_device(target) for target in targets],
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


def _describe_device(target: Target) -> dict[str, Any]:
    known = {"name": target.name, "title": target.title, "driver": target.driver, "simulated": target.simulated}
    if target.index is None:
        return known
    properties: Any = torch.xpu.get_device_properties(target.index)
    names = (
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
    told = {name: getattr(properties, name) for name in names if hasattr(properties, name)}
    return {**known, **{k: v if isinstance(v, (bool, int)) else str(v) for k, v in told.items()}}


def _system() -> str:
    if sys.platform != "linux":
        return platform.platform(terse=True)
    try:
        distribution = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        distribution = "Linux"
    return f"{distribution}, kernel {platform.release()}"
