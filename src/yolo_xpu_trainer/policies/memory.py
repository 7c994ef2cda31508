"""Memory figures that every driver can give: what PyTorch's allocator holds, of what the device has."""

from __future__ import annotations

from ..devices import DeviceInfo
from ..hookspecs import hookimpl
from ..upstream import Row, autobatch, legacy

__all__: list[str] = []


@hookimpl
def xpu_memory(device: DeviceInfo) -> tuple[int, int]:
    """Return reserved and total bytes: the free memory can't be queried everywhere (pytorch#159728)."""
    return device.reserved_memory(), device.total_memory


@hookimpl
def xpu_upstream_rows() -> list[Row]:
    """Show AutoBatch the memory that this process can have, and validate a DDP run on its XPU."""
    return [*autobatch.ROWS, *legacy.RUN_ROWS]
