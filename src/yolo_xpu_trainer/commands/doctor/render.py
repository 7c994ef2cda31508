"""What the terminal shows: the machine in a line or two, then what is wrong, each with what fixes it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import zip_longest

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...diagnosis import Verdict
from .runner import Result

__all__ = ["show"]

MARKS = {
    Verdict.OK: ("✓", "ok", "green"),
    Verdict.WARNING: ("!", "!", "yellow"),
    Verdict.PROBLEM: ("✗", "XX", "red"),
    Verdict.NOT_APPLICABLE: ("-", "-", "dim"),
}
"""Each verdict's mark, the same for terminals without it, and its colour."""

_ALWAYS = ("torch-build", "ultralytics", "devices")  # what a reader wants to know of any machine


def show(console: Console, results: Sequence[Result], *, everything: bool) -> None:
    """Print results.

    Args:
        console: Where to.
        results: The results, in their order.
        everything: Whether those are shown, too, that found nothing wrong, and the tables.
    """
    for result in results:
        bad = result.verdict in (Verdict.WARNING, Verdict.PROBLEM)
        if everything or bad or (result.check.name in _ALWAYS and result.verdict is Verdict.OK):
            _show(console, result, with_table=everything)
    console.print(_summary(results), highlight=False, soft_wrap=True)


def _show(console: Console, result: Result, *, with_table: bool) -> None:
    mark, plain, style = MARKS[result.verdict]
    mark = mark if console.encoding.lower().startswith("utf") else plain
    said = result.diagnosis

    def line(text: str, indent: str = "    ") -> None:
        console.print(f"{indent}{text}", highlight=False, soft_wrap=True)

    line(f"[{style}]{mark}[/] [bold]{escape(result.check.name)}[/]: {escape(said.seen)}", indent="")
    for i, command in enumerate(said.fix):
        line(f"{'fix: ' if not i else '     '}[cyan]{escape(command)}[/]{escape(_in_powershell(command))}")
    if said.advice:
        line(escape(said.advice), indent="    " if not said.fix else "         ")
    if with_table and len(said.table) > 1:
        heading, *rows = said.table
        table = Table(*map(escape, heading))
        for row in rows:
            table.add_row(*map(escape, row))
        if _narrowest(console, table) <= console.width:
            console.print(table)
        else:  # long names would be cut off
            for name, *cells in rows:
                line(escape(name))
                for what, cell in zip_longest(heading[1:], cells, fillvalue=""):
                    if cell:
                        line(escape(f"{what}: {cell}"), indent="        ")


def _narrowest(console: Console, table: Table) -> int:
    """Return how wide a table is that breaks its texts between words alone."""
    endless = console.options.update(width=sys.maxsize)  # else no table is wider than the console
    return console.measure(table, options=endless).minimum


def _in_powershell(command: str) -> str:
    """Return what stands in PowerShell for `set` of Windows' other shell, "" for other commands."""
    found = re.fullmatch(r"set (\w+)=(.*)", command)
    if not found:
        return ""
    name, value = found.groups()
    return f"  (in PowerShell: $env:{name} = '{value}')" if value else f"  (in PowerShell: Remove-Item Env:{name})"


def _summary(results: Sequence[Result]) -> str:
    counts = {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}
    problems, warnings = counts[Verdict.PROBLEM], counts[Verdict.WARNING]
    tail = f"{counts[Verdict.OK]} checks passed, {counts[Verdict.NOT_APPLICABLE]} don't apply"
    if len(results) == 1:
        return ""
    if problems:
        first = next(result.check.name for result in results if result.verdict is Verdict.PROBLEM)
        many = f"{problems} problem{'s' * (problems > 1)}" + f", {warnings} warning{'s' * (warnings > 1)}" * bool(
            warnings
        )
        scripted = any(result.diagnosis.fix for result in results)
        hint = " `yolo-xpu doctor --fix` prints the commands as one script." * scripted
        return f"[bold]A training won't run on an XPU here[/]: {many}. Begin with {escape(first)}.{hint}"
    if warnings:
        return f"[bold]A training will run[/], with {warnings} warning{'s' * (warnings > 1)}; {tail}."
    return f"[bold]All is well[/]: {tail}. `yolo-xpu doctor --verbose` shows them."
