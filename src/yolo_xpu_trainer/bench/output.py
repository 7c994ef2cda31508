"""The report as a table for the terminal, as Markdown for an issue, and as JSON for everything else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

from rich import box
from rich.table import Table

from .results import TITLES, Case, Report, Result

__all__ = ["as_json", "figure", "markdown", "speedup", "spread", "table"]

_SAME = "same code"
_NONE = "-"


def as_json(report: Report) -> str:
    """Return everything that was measured."""
    return json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"


def table(report: Report, mode: str) -> Table:
    """Draw the results of a mode, a case a row."""
    simulated = "SIMULATED XPU: no hardware was measured\n" * report.simulated
    repeats = report.settings.repeats
    drawn = Table(
        *("device", "precision", "plain", "ours", "ratio", "memory\nGiB", "busy\n%", "power\nW"),
        title=f"{simulated}{TITLES[mode]}, images per second: {report.subject}",
        caption=f"median of {repeats} (least-greatest); memory, busy and power: plain / ours",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    previous = None
    for case, results in report.cases(mode):
        drawn.add_row(
            case.target.name if case.target != previous else "",
            _precision(case),
            *_columns(results, "\n"),
            speedup(results),
            _pair(results, _memory),
            _pair(results, lambda result: _reading(result, "utilization")),
            _pair(results, lambda result: _reading(result, "power_draw")),
        )
        previous = case.target
    return drawn


def markdown(report: Report) -> str:
    """Return a table to paste into an issue, with what it was measured on in every row."""
    e = report.environment
    heads = ("device", "driver", "OS", "torch", "Ultralytics", "yolo-xpu-trainer", "measured", "plain", "ours", "ratio")
    repeats = report.settings.repeats
    lines = [f"Images per second, median (least-greatest) of {repeats}; {report.subject}:", ""]
    if report.simulated:
        lines[:0] = ["**Simulated XPU: no hardware was measured.**", ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for case, results in itertools.chain.from_iterable(map(report.tried, report.settings.modes)):
        target = case.target
        software = (e["os"], e["torch"], e["ultralytics"], e["yolo_xpu_trainer"])
        cells = (target.label, target.driver, *software, f"{case.mode} {_precision(case)}")
        row = [*cells, *_columns(results, " "), speedup(results)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    notes = report.footnotes()
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def figure(value: float) -> str:
    """Write a number with three digits, or as many as it has before its point."""
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def spread(result: Result, between: str) -> str:
    """Write the median of a result and, with something between, how far its windows lie apart."""
    if result.median is None:
        return "failed" if result.status == "failed" else _NONE
    figures = result.figures()
    apart = f"{between}({figure(min(figures))}-{figure(max(figures))})" if len(figures) > 1 else ""
    return figure(result.median) + apart


def speedup(results: dict[str, Result]) -> str:
    """Write how many times as fast this package is."""
    plain, ours = (results[name].median if name in results else None for name in ("plain", "ours"))
    return f"{ours / plain:.2f}" if plain and ours else _NONE


def _columns(results: dict[str, Result], between: str) -> tuple[str, str]:
    if both := results.get("both"):
        return spread(both, between), _SAME if both.median is not None else spread(both, between)
    plain, ours = (spread(results[name], between) if name in results else _NONE for name in ("plain", "ours"))
    return plain, ours


def _precision(case: Case) -> str:
    return case.precision + " compiled" * case.compile


def _pair(results: dict[str, Result], value: Callable[[Result], str]) -> str:
    """Write a value of both implementations, or of the one there is, "-" where there is none."""
    shown = [value(result) for result in results.values()]
    return " / ".join(shown) if any(text != _NONE for text in shown) else _NONE


def _memory(result: Result) -> str:
    peak = result.memory("reserved")
    return _NONE if peak is None else f"{peak / 2**30:.2f}"


def _reading(result: Result, name: str) -> str:
    value = result.telemetry(name)
    return _NONE if value is None else f"{value:.0f}"
