"""What came out of checks, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..devices import DeviceInfo
from .check import Finding

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["table"]


def table(device: DeviceInfo, findings: Sequence[Finding]) -> Table:
    """Return what came out of a device's checks: operator, dtype, largest difference and verdict of each."""
    from rich.markup import escape
    from rich.table import Table

    title = f"{device}, driver {device.driver}, PyTorch {torch.__version__}"
    rows = Table("operator", "dtype", "largest difference", "verdict", title=title, title_justify="left")
    for found in findings:
        check = found.check
        assert check is not None
        seen = escape(f"fails: {found.error}") if found.error else "wrong"
        consequence = check.instead or (f"{check.whose} end" if check.whose else "")
        verdict = f"[yellow]{seen}. {consequence}[/]" if consequence else f"[red]{seen}[/]"
        verdict = "right" if found.right else verdict
        rows.add_row(escape(check.operator), check.dtype_name, found.amount, verdict)
    return rows
