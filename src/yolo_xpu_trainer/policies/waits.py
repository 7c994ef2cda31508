"""What the host knows needn't be asked of the device, nor sent there twice: anchors, constants, counts of targets."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..upstream import Row, foreground, waits

__all__: list[str] = []


@hookimpl
def xpu_upstream_rows() -> list[Row]:
    """Keep anchors and constants, count targets on the host, and find the foreground once."""
    return [*waits.ROWS, *foreground.ROWS]
