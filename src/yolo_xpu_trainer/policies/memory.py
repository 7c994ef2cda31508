"""Memory figures that every driver can give: what PyTorch's allocator holds, of what the device has."""

from __future__ import annotations

from ..devices import DeviceInfo
from ..hookspecs import hookimpl

__all__: list[str] = []


@hookimpl
def xpu_memory(device: DeviceInfo) -> tuple[int, int]:
    """Return reserved and total bytes: the free memory can't be queried everywhere (pytorch#159728)."""
    return device.reserved_memory(), device.total_memory
