"""`yolo-xpu doctor`: which XPUs this process sees, what they can do, and why there is none, with what mends it."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from . import devices
from .plugins import manager

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options yet."""


def run(args: argparse.Namespace) -> int:
    """Print what is here.

    Returns:
        0 where there is an XPU, 1 where there is none.
    """
    import torch
    from ultralytics import __version__ as ultralytics_version

    console = Console()
    console.print(f"torch {torch.__version__}, Ultralytics {ultralytics_version}")
    reason = devices.why_none()
    if reason is not None:
        console.print(f"[bold]No XPU[/]: {reason.seen}. {reason.remedy}", soft_wrap=True)
        return 1
    table = Table("device", "memory", "free", "float64", "matrix units", "integrated", "driver", "precision")
    for device in devices.available():
        free = device.free_memory()
        precision = manager().hook.xpu_precision(device=device, requested=True)
        table.add_row(
            str(device),
            f"{device.total_memory / 2**30:.1f} GiB",
            "unknown" if free is None else f"{free / 2**30:.1f} GiB",
            *("yes" if has else "no" for has in (device.has_fp64, device.has_matrix_units, device.integrated)),
            device.driver,
            precision.name,
        )
    console.print(table)
    return 0
