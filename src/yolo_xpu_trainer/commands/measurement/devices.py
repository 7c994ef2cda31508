"""A device to measure, described."""

from __future__ import annotations

from typing import Any

import torch

from ...devices import DeviceInfo
from .cases import Device

__all__ = ["xpu"]


def xpu(info: DeviceInfo) -> Device:
    """Describe an XPU, and tell whether it is simulated."""
    title = str(info).removeprefix(f"xpu:{info.index} ")
    properties: Any = torch.xpu.get_device_properties(info.index)
    simulated = "simulated" in str(getattr(properties, "platform_name", "")).lower()
    return Device(str(info.device), title, info.driver, info.index, info.has_fp16, simulated)
