"""The report as a table for the terminal, as Markdown for an issue, and as JSON for everything else."""

from __future__ import annotations

import itertools
import json

from rich import box
from rich.table import Column, Table

from .results import TITLES, Case, Report, Result

__all__ = ["as_json", "figure", "markdown", "speedup", "table"]

_SAME = "same code"
_NONE = "-"


def as_json(report: Report) -> str:
    """Return everything that was measured."""
    return json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"


def table(report: Report, mode: str) -> Table:
    """Draw the results of a mode, a row for each case and implementation."""
    simulated = "SIMULATED XPU: no hardware was measured\n" * report.simulated
    figures = ("median", "spread", "ratio", "GiB", "busy %", "W")
    drawn = Table(
        *(Column(name, no_wrap=True) for name in ("device", "precision", "code")),
        *(Column(name, no_wrap=True, justify="right") for name in figures),
        title=f"{simulated}{TITLES[mode]}, images per second: {report.subject}",
        caption=f"{_statistic(report)}; GiB: most memory reserved",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    previous = None
    for case, results in report.tried(mode):
        device = case.target.name if case.target != previous else ""
        previous = case.target
        names = [device, _precision(case)]
        for result in results.values():
            drawn.add_row(
                *names,
                result.implementation,
                _median(result),
                _apart(result) or _NONE,
                speedup(results) if result.implementation == "ours" else _NONE,
                _memory(result),
                _reading(result, "utilization"),
                _reading(result, "power_draw"),
            )
            names = ["", ""]
    return drawn


def markdown(report: Report) -> str:
    """Return a table to paste into an issue, with what it was measured on in every row."""
    e = report.environment
    heads = ("device", "driver", "OS", "torch", "Ultralytics", "yolo-xpu-trainer", "measured", "plain", "ours", "ratio")
    lines = [f"Images per second, {report.subject}; {_statistic(report)}:", ""]
    if report.simulated:
        lines[:0] = ["**Simulated XPU: no hardware was measured.**", ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for case, results in itertools.chain.from_iterable(map(report.tried, report.settings.modes)):
        target = case.target
        software = (e["os"], e["torch"], e["ultralytics"], e["yolo_xpu_trainer"])
        cells = (target.label, target.driver, *software, f"{case.mode} {_precision(case)}")
        row = [*cells, _cell(results, "plain"), _cell(results, "ours"), speedup(results)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    notes = report.footnotes()
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def figure(value: float) -> str:
    """Write a number with three digits, or as many as it has before its point."""
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def _median(result: Result) -> str:
    if result.median is None:
        return "failed" if result.status == "failed" else _NONE
    return figure(result.median)


def _apart(result: Result) -> str:
    """Write how far a result's windows lie apart, "" where there is one only."""
    figures = result.figures()
    return f"{figure(min(figures))}-{figure(max(figures))}" if len(figures) > 1 else ""


def speedup(results: dict[str, Result]) -> str:
    """Write how many times as fast this package is."""
    plain, ours = (results[name].median if name in results else None for name in ("plain", "ours"))
    return f"{ours / plain:.2f}" if plain and ours else _NONE


def _cell(results: dict[str, Result], implementation: str) -> str:
    """Write the median and spread of an implementation, or that it is the same code."""
    if implementation == "ours" and "both" in results:
        return _SAME
    result = results.get(implementation, results.get("both"))
    if result is None:
        return _NONE
    apart = _apart(result)
    return f"{_median(result)} ({apart})" if apart else _median(result)


def _statistic(report: Report) -> str:
    repeats = report.settings.repeats
    return f"median of {repeats} windows, least to greatest" if repeats > 1 else "one window each"


def _precision(case: Case) -> str:
    return case.precision + " compiled" * case.compile


def _memory(result: Result) -> str:
    peak = result.memory("reserved")
    return _NONE if peak is None else f"{peak / 2**30:.2f}"


def _reading(result: Result, name: str) -> str:
    value = result.telemetry(name)
    return _NONE if value is None else f"{value:.0f}"
