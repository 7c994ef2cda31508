"""`yolo-xpu doctor`: whether a training works on this machine, and the command that fixes what doesn't.

It works where `import torch` fails, hangs or crashes: this process reads files, and asks PyTorch in child processes
with a time limit (`probes.py`, `child.py`). A subject is a module, which ends with its `CHECKS`; `runner.py` has their
order. `yolo_xpu_trainer.diagnosis` has what a check is and the machine that it sees.
"""

from __future__ import annotations

import argparse
import difflib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ... import __version__
from ...diagnosis import DoctorCheck, Machine
from ...errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_arguments", "run"]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} was given; it must be a number of seconds above 0")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--check", action="append", metavar="NAME", default=[], help="make this check alone, in full; may be repeated"
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="show the checks that found nothing wrong, too")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--list", action="store_true", help="list the checks, and make none")
    output.add_argument("--json", action="store_true", help="print what was found as JSON")
    output.add_argument(
        "--report", type=Path, metavar="FILE", help="write Markdown for a bug report, without names, paths and tokens"
    )
    output.add_argument("--fix", action="store_true", help="print the commands that fix what was found, as one script")
    output.add_argument(
        "--numerics",
        action="store_true",
        help="compare the operators that a training leans on with the CPU's, all of them anew, and nothing else",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long PyTorch may be silent in a child process before it counts as hanging (default: %(default)g)",
    )


def run(args: argparse.Namespace, machine: Machine | None = None) -> int:
    """Examine the machine and print what was found.

    Args:
        args: The command's options.
        machine: The machine, by default this one.

    Returns:
        0 where a training works, 1 where it works with warnings, 2 where it doesn't.
    """
    from rich.console import Console

    from . import render, report, runner

    machine = machine or Machine(seconds=args.timeout)
    if isinstance(sys.stdout, io.TextIOWrapper):  # Windows writes to files and pipes in a code page of its own
        sys.stdout.reconfigure(errors="replace")
    console = Console()
    if args.list:
        return _list(machine)
    if args.numerics:
        return _numerics(machine, console)
    chosen, with_others = _chosen(args.check, machine)
    working = Console(stderr=True)
    with working.status("Looking at this machine …"):
        results = list(runner.examine(machine, chosen, with_others=with_others))
    if args.check:
        results = [result for result in results if result.check.name in args.check]
    if args.json:
        print(report.as_json(results, __version__))
    elif args.fix:
        print(report.as_script(results, machine), end="")
    else:
        render.show(console, results, everything=args.verbose or bool(args.check))
    if args.report:
        _write(args.report, report.as_markdown(results, machine, __version__))
        console.print(f"Report: {args.report}", highlight=False, soft_wrap=True)
    return runner.exit_status(results)


def _chosen(names: Sequence[str], machine: Machine) -> tuple[tuple[DoctorCheck, ...], bool]:
    """Return the built-in checks of these names, all for none, and whether other packages' checks are wanted.

    Raises:
        UsageError: No check has that name.
    """
    from . import runner

    if not names:
        return runner.CHECKS, True
    own = {check.name: check for check in runner.CHECKS}
    others = [name for name in names if name not in own]
    if others:
        known = [result.check.name for result in runner.examine(machine, (), with_others=True)]
        for name in (name for name in others if name not in known):
            near = difflib.get_close_matches(name, [*own, *known], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UsageError(f"there is no check {name!r}.{hint} `yolo-xpu doctor --list` lists them.")
    return tuple(own[name] for name in dict.fromkeys(names) if name in own), bool(others)


def _list(machine: Machine) -> int:
    """Print every check's name and what it looks at."""
    from . import runner

    rows = [(check.name, check.what) for check in runner.CHECKS]
    rows += [(result.check.name, result.check.what) for result in runner.examine(machine, ())]
    width = max(len(name) for name, _ in rows)
    for name, what in rows:
        print(f"{name:{width}}  {what}")
    return 0


def _numerics(machine: Machine, console: Console) -> int:
    """Compare every operator, in this process, once a child process has shown that PyTorch and the devices answer."""
    from . import render, runner

    own = {check.name: check for check in runner.CHECKS}
    results = list(
        runner.examine(machine, (own["torch-build"], own["torch-import"], own["devices"]), with_others=False)
    )
    if runner.exit_status(results) == 2:
        render.show(console, results, everything=False)
        return 2
    from .comparing import compare

    return compare(console)


def _write(path: Path, text: str) -> None:
    """Write a report.

    Raises:
        UsageError: It can't be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't write {path} ({error.strerror}). Name another file with --report.") from error
