"""`yolo-xpu doctor`: the XPUs that this process sees and what they can do, or why there is none and how to fix it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from .. import devices
from ..activation import process_patches
from ..numerics import SELF_CHECK, Finding, examine
from ..options import Options
from ..patches import Patch
from ..plugins import declared_options, hooks
from ..run import Precision, Run

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--numerics",
        action="store_true",
        help="compare the operators that a training leans on with the CPU's, all of them anew, and nothing else",
    )


def run(args: argparse.Namespace) -> int:
    """Print versions, devices, and what this package changes in Ultralytics.

    Returns:
        0 if there is an XPU, and with `--numerics` no training on it would be refused; else 1.
    """
    from ultralytics import __version__ as ultralytics_version

    console = Console()
    console.print(f"torch {torch.__version__}, Ultralytics {ultralytics_version}", highlight=False)
    reason = devices.why_none()
    if reason is not None:
        console.print(f"[bold]No XPU[/]: {reason.seen}. {reason.remedy}", soft_wrap=True, highlight=False)
    if args.numerics:
        return 0 if reason is None and compare(console) else 1
    with Options.scope({SELF_CHECK.name: False}):  # which the device may not survive
        if reason is None:
            console.print(_devices())
        console.print(_of_process())
        if reason is None:
            console.print(_of_training())
    return 0 if reason is None else 1


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
