"""`yolo-xpu doctor --numerics`: every operator that a training leans on, on every XPU beside the CPU."""

from __future__ import annotations

import time

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from ... import devices
from ...numerics import Finding, examine, table
from ...plugins import hooks
from ...remedies import OTHER_RELEASES
from .numerics import lacks_float64

__all__ = ["compare"]


def compare(console: Console) -> int:
    """Compare what every XPU computes with the CPU, and print a table for each.

    Returns:
        The exit status: 2 where no training on one of them would start, 1 where something else is wrong than what needs
        float64 on a GPU without it, 0 otherwise.
    """
    checks = [check for found in hooks().xpu_numerics() for check in found]
    status = 0
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
        console.print(table(device, findings))
        wrong = [found for found in findings if not found.right and found.check]
        ending = [found for found in wrong if found.check and not found.check.instead]
        fatal = [found for found in ending if found.check and not found.check.whose]
        console.print(
            f"{len(findings)} operators compared in {time.perf_counter() - began:.1f} s: "
            + (f"{len(wrong)} wrong, {len(fatal)} of which no training can do without." if wrong else "all right."),
            highlight=False,
        )
        for found in ending:
            assert found.check is not None
            whose = f" {found.check.whose} end." if found.check.whose else ""
            said = f"{found.check.advice} {OTHER_RELEASES}".strip()
            console.print(f"[bold]{escape(str(found))}[/].{whose} {escape(said)}", soft_wrap=True)
        unexpected = [found for found in wrong if device.has_fp64 or not lacks_float64(str(found))]
        status = max(status, 2 if fatal else 1 if unexpected else 0)
    return status
