"""`yolo-xpu doctor`: which XPUs this process sees, what they can do, and why there is none, with what mends it."""

from __future__ import annotations

import argparse
import contextlib
import importlib

from rich.console import Console
from rich.table import Table

from .. import devices
from ..plugins import manager
from ..upstream.process import process_rows

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options yet."""


def run(args: argparse.Namespace) -> int:
    """Print what is here, and what of Ultralytics is changed.

    Returns:
        0 where there is an XPU, 1 where there is none.
    """
    import torch
    from ultralytics import __version__ as ultralytics_version

    console = Console()
    console.print(f"torch {torch.__version__}, Ultralytics {ultralytics_version}", highlight=False)
    reason = devices.why_none()
    if reason is None:
        console.print(_devices())
    else:
        console.print(f"[bold]No XPU[/]: {reason.seen}. {reason.remedy}", soft_wrap=True, highlight=False)
    console.print(_changes())
    return 0 if reason is None else 1


def _devices() -> Table:
    """Draw what each XPU is and can do, a column each."""
    found = devices.available()
    table = Table("", *map(str, found), title="Devices", title_justify="left")

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values)

    free = [device.free_memory() for device in found]
    row("memory", *(f"{device.total_memory / 2**30:.1f} GiB" for device in found))
    row("free memory", *("the driver can't tell" if f is None else f"{f / 2**30:.1f} GiB" for f in free))
    limits = [device.allocation_limit for device in found]
    lifted = f", unless {devices.RELAXED_LIMITS}=1 is set"
    row("one allocation", *("any size" if n is None else f"below {n / 2**30:g} GiB{lifted}" for n in limits))
    row("float64", *("yes" if device.has_fp64 else "no" for device in found))
    row("matrix units", *("yes" if device.has_matrix_units else "no" for device in found))
    row("integrated", *("yes" if device.integrated else "no" for device in found))
    row("driver", *(device.driver for device in found))
    precisions = [manager().hook.xpu_precision(device=device, requested=True) for device in found]
    row("amp=True means", *(f"{precision.name}: {precision.reason}" for precision in precisions))
    return table


def _changes() -> Table:
    """Draw what this package changes in Ultralytics for the whole process."""
    changes = process_rows()
    changes.activate()
    for row in changes.rows:
        with contextlib.suppress(ImportError):  # an optional row's module, in a version that hasn't got it
            importlib.import_module(row.module)
    table = Table("changed in Ultralytics", "state", "because", title="Changes", title_justify="left")
    for row in changes.rows:
        state = "active" if row.target in changes.acting else changes.passed.get(row.target, "waiting")
        table.add_row(row.target.removeprefix("ultralytics."), state, row.why)
    return table
