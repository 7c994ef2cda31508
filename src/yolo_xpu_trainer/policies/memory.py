"""Memory figures that every driver can give: what PyTorch's allocator holds, of what the device has."""

from __future__ import annotations

from ..devices import DeviceInfo
from ..hookspecs import hookimpl
from ..upstream import Row
from ..upstream.legacy import RUN_ROWS
from ..upstream.memory import ROWS

__all__: list[str] = []


@hookimpl
def xpu_memory(device: DeviceInfo) -> tuple[int, int]:
    """Return reserved and total bytes: the free memory can't be queried everywhere (pytorch#159728)."""
    return device.reserved_memory(), device.total_memory


@hookimpl
def xpu_upstream_rows() -> list[Row]:
    """Answer `torch.xpu.mem_get_info` where the driver doesn't, and AutoBatch where it asks CUDA."""
    return [*ROWS, *RUN_ROWS]
