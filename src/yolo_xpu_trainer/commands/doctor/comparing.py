"""`yolo-xpu doctor --numerics`: every operator that a training leans on, on every XPU beside the CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ... import devices
from ...numerics import Finding, examine
from ...plugins import hooks

__all__ = ["compare"]


def compare(console: Console) -> bool:
    """Compare what every XPU computes with the CPU, and print a table for each.

    Returns:
        Whether a training on them would start.
    """
    checks = [check for found in hooks().xpu_numerics() for check in found]
    usable = True
    for device in devices.available():
        wanted = [c for c in checks if c.dtype is not torch.float16 or device.has_fp16]
        findings: list[Finding] = []
        began = time.perf_counter()
        for found in track(
            examine(wanted, device, anew=True),
            description=f"Comparing {device} with the CPU",
            total=len(wanted),
            console=console,
            transient=True,
        ):
            findings.append(found)
        console.print(_numerics(device, findings))
        wrong = [found for found in findings if not found.right]
        fatal = [found for found in wrong if found.check and not found.check.instead]
        console.print(
            f"{len(findings)} operators compared in {time.perf_counter() - began:.1f} s: "
            + (f"{len(wrong)} wrong, {len(fatal)} of which no training can do without." if wrong else "all right."),
            highlight=False,
        )
        for found in fatal:
            console.print(f"[bold]{found}[/]. {found.check.advice if found.check else ''}", soft_wrap=True)
        usable &= not fatal
    return usable


def _numerics(device: devices.DeviceInfo, findings: Sequence[Finding]) -> Table:
    """Return the table of what came out of a device's checks."""
    title = f"{device}, driver {device.driver}, PyTorch {torch.__version__}"
    table = Table("operator", "dtype", "largest difference", "verdict", title=title, title_justify="left")
    for found in findings:
        check = found.check
        assert check is not None
        seen = escape(f"fails: {found.error}") if found.error else "wrong"
        verdict = f"[yellow]{seen}. {check.instead}[/]" if check.instead else f"[red]{seen}[/]"
        verdict = "right" if found.right else verdict
        table.add_row(escape(check.operator), check.dtype_name, found.amount, verdict)
    return table
