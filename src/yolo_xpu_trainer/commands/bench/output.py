"""The report as a table for the terminal, as Markdown for an issue, and as JSON."""

from __future__ import annotations

import io
import itertools
import json

from rich import box
from rich.console import Console
from rich.table import Column, Table

from .results import TITLES, Report, Result

__all__ = ["as_json", "figure", "markdown", "ratio", "table"]

_NONE = "-"
_OF_SWITCHES = "; ratio of a switch: to the same code without it"


def as_json(report: Report) -> str:
    """Return everything that was measured."""
    return json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"


def table(report: Report, mode: str) -> Table:
    """Return the results of a mode, a row for each case and implementation."""
    simulated = "SIMULATED XPU: no hardware was measured\n" * report.simulated
    tried = report.tried(mode)
    joules = any(result.images_per_joule for _, results in tried for result in results.values())
    figures = ("median", "spread", "ratio", "GiB", "busy %", "W", *["img/J"] * joules)
    switches = any(case.switch for case, _ in tried)
    drawn = Table(
        Column("device", no_wrap=True),
        Column("precision", overflow="fold"),
        Column("code", no_wrap=True),
        *(Column(name, no_wrap=True, justify="right") for name in figures),
        title=f"{simulated}{TITLES[mode]}, images per second: {report.subject}",
        caption=f"{_statistic(report)}; GiB: peak of reserved memory{'; img/J: images per joule' * joules}"
        f"{_OF_SWITCHES * switches}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    previous = None
    for case, results in tried:
        names = [case.device.name if case.device != previous else "", str(case.switch or case.variant)]
        previous = case.device
        for result in results.values():
            peak = result.memory("reserved")
            drawn.add_row(
                *names,
                result.implementation,
                _median(result),
                _spread(result) or _NONE,
                ratio(report, result),
                _NONE if peak is None else f"{peak / 2**30:.2f}",
                *(_reading(result, name) for name in ("utilization", "power_draw")),
                *[_joules(result)] * joules,
            )
            names = ["", ""]
    return drawn


def markdown(report: Report) -> str:
    """Return a table to paste into an issue; each row names the device and the software."""
    e = report.environment
    heads = ("device", "driver", "OS", "torch", "Ultralytics", "yolo-xpu-trainer", "measured", "plain", "ours", "ratio")
    joules = any(result.images_per_joule for result in report.results)
    drawn = Table(*heads, *["images per joule"] * joules, box=box.MARKDOWN)
    software = (e["os"], e["torch"], e["ultralytics"], e["yolo_xpu_trainer"])
    for case, results in itertools.chain.from_iterable(map(report.tried, report.settings.modes)):
        device = case.device
        cells = [device.label, device.driver, *software, f"{case.mode} {case.variant}"]
        ours = results.get("ours")
        cells += [_cell(results, "plain"), _cell(results, "ours"), ratio(report, ours) if ours else _NONE]
        cells += [" / ".join(_joules(result) for result in results.values())] * joules
        drawn.add_row(*(cell.replace("|", "\\|") for cell in cells))
    text = io.StringIO()
    console = Console(file=text, width=10_000, markup=False, emoji=False, highlight=False, color_system=None)
    if report.simulated:
        console.print("**Simulated XPU: no hardware was measured.**\n")
    console.print(
        f"Images per second, {report.subject}; {_statistic(report)}{_OF_SWITCHES * report.settings.switches}:"
    )
    console.print(drawn)
    console.print(*(f"- {note}" for note in report.footnotes()), sep="\n", soft_wrap=True)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip() + "\n"


def figure(value: float) -> str:
    """Return a number with three digits, or all digits of its integer part."""
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def _median(result: Result) -> str:
    if result.median is None:
        return "failed" if result.status == "failed" else _NONE
    return figure(result.median)


def _spread(result: Result) -> str:
    """Return the lowest and highest of a result's windows, "" if there is only one."""
    figures = result.figures()
    return f"{figure(min(figures))}-{figure(max(figures))}" if len(figures) > 1 else ""


def ratio(report: Report, result: Result) -> str:
    """Return a speed divided by the one that it is compared with, see `Report.ratio`."""
    value = report.ratio(result)
    return _NONE if value is None else f"{value:.2f}"


def _joules(result: Result) -> str:
    return _NONE if result.images_per_joule is None else figure(result.images_per_joule)


def _cell(results: dict[str, Result], implementation: str) -> str:
    """Return the median and spread of an implementation."""
    if implementation == "ours" and "both" in results:
        return "same code"
    result = results.get(implementation, results.get("both"))
    if result is None:
        return _NONE
    spread = _spread(result)
    return f"{_median(result)} ({spread})" if spread else _median(result)


def _statistic(report: Report) -> str:
    repeats = report.settings.repeats
    return f"median of {repeats} windows, lowest to highest" if repeats > 1 else "one window each"


def _reading(result: Result, name: str) -> str:
    value = result.telemetry(name)
    return _NONE if value is None else f"{value:.0f}"
