"""`yolo-xpu doctor`: the XPUs that this process sees and what they can do, or why there is none and how to fix it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from rich.console import Console
from rich.table import Table

from .. import devices
from ..activation import process_patches
from ..options import Options
from ..patches import Patch
from ..plugins import declared_options, hooks
from ..run import Precision, Run

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options."""


def run(args: argparse.Namespace) -> int:
    """Print versions, devices, and what this package changes in Ultralytics.

    Returns:
        0 if there is an XPU, 1 if there is none.
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
    console.print(_of_process())
    if reason is None:
        console.print(_of_training())
    return 0 if reason is None else 1


def _devices() -> Table:
    """Return the table of the XPUs, a column each."""

    def gib(size: int | None) -> str:
        return "not reported by the driver" if size is None else f"{size / 2**30:.1f} GiB"

    def limit(size: int | None) -> str:
        return "no limit" if size is None else f"less than {size / 2**30:g} GiB: {devices.limit_of_allocations()}"

    def amp(device: devices.DeviceInfo) -> str:
        precision = hooks().xpu_precision(device=device, requested=True)
        return f"{precision.name}: {precision.reason}" if precision else "fp32: no plugin decides it"

    found = devices.available()
    table = Table("", *map(str, found), title="Devices", title_justify="left")
    for name, describe in {
        "memory": lambda device: gib(device.total_memory),
        "free memory": lambda device: gib(device.free_memory()),
        "one allocation": lambda device: limit(device.allocation_limit),
        "float64": lambda device: "yes" if device.has_fp64 else "no",
        "matrix units": lambda device: "yes" if device.has_matrix_units else "no",
        "integrated": lambda device: "yes" if device.integrated else "no",
        "driver": lambda device: device.driver,
        "amp=True means": amp,
    }.items():
        table.add_row(name, *map(describe, found))
    return table


def _patches(found: Sequence[Patch], state: Callable[[Patch], str], title: str) -> Table:
    """Return the table of patches of Ultralytics, of the whole process or of a training."""
    table = Table("patched in Ultralytics", "state", "why", "source", title=title, title_justify="left")
    for patch in found:
        table.add_row(patch.target.removeprefix("ultralytics."), state(patch), patch.why, patch.where)
    return table


def _of_process() -> Table:
    patches = process_patches()
    patches.apply()
    for patch in patches.patches:
        with contextlib.suppress(ImportError):  # some versions have no such module
            importlib.import_module(patch.module)
    return _patches(patches.patches, patches.state_of, "Patches, from the import of Ultralytics on")


def _of_training() -> Table:
    """Return the table of the patches that a training with these options has while it lasts."""
    device = devices.available()[0]
    precision = hooks().xpu_precision(device=device, requested=True) or Precision("fp32", "no plugin decides it")
    run = Run(device, (device.index,), precision, Options.resolve(declared_options(), {}))
    asked = SimpleNamespace(xpu=run, device=device.device)
    wanted = [patch for patches in hooks().xpu_patches(trainer=asked) for patch in patches]

    def state(patch: Patch) -> str:
        try:
            needed = patch.is_needed()
        except LookupError:
            return "not there" if patch.optional else "moved"
        return "wanted" if needed else "not needed"

    return _patches(wanted, state, "Patches, while a detector trains")
