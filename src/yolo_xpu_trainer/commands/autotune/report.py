"""What was measured and chosen: as a table for the terminal, and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.table import Column, Table

from ..measurement.cases import Device
from .search import MIN_GAIN, MIN_WINDOWS, Entry, Outcome, verdict

__all__ = ["Report", "as_json", "conclusion", "doubts", "sections", "table"]

_NONE = "-"
_STYLES = {"faster": "bold green", "slower": "red", "failed": "red"}


@dataclass
class Report:
    """Everything that is said of a search.

    Attributes:
        device: What was measured.
        subject: Model and sizes: "yolo11n, imgsz 640, batch 16".
        precision: In which the defaults compute.
        versions: By name: "torch", "ultralytics", "yolo_xpu_trainer".
        outcome: The measurements and the choice.
        notes: Remarks.
    """

    device: Device
    subject: str
    precision: str
    versions: dict[str, str]
    outcome: Outcome = field(default_factory=Outcome)
    notes: list[str] = field(default_factory=list)


_DOUBT = 0.2  # how far two clocks may be apart


def doubts(report: Report) -> list[str]:
    """Say that the device's clock and the host's disagree, if they do; a simulated device may have any."""
    windows = [window for window in report.outcome.default.windows if window.wall_seconds]
    if report.device.simulated or not windows:
        return []
    ratio = statistics.median(window.seconds / (window.wall_seconds or 1.0) for window in windows)
    if abs(ratio - 1) <= _DOUBT:
        return []
    return [
        f"the device's clock says {ratio:.2f} of what the host's says: the figures are in doubt, so please report it."
    ]


def sections(outcome: Outcome) -> Iterator[tuple[str, Entry, list[Entry]]]:
    """Yield a title, the defaults and what was measured beside them: one at a time, then together."""
    if outcome.default.windows:
        yield "one at a time", outcome.default, outcome.singles
    if outcome.final_default.windows:
        yield "the winners again", outcome.final_default, outcome.finals


def table(report: Report) -> Table:
    """Return a row for each configuration."""
    simulated = "SIMULATED XPU: no hardware was measured\n" * report.device.simulated
    drawn = Table(
        Column("configuration", overflow="fold"),
        *(Column(name, no_wrap=True, justify="right") for name in ("ms/step", "spread", "gain", "GiB")),
        Column("verdict", no_wrap=True),
        title=f"{simulated}Training on {report.device.label}: {report.subject}, {report.precision}",
        caption=f"ms/step: median and lowest to highest window; GiB: peak of reserved memory; faster: every window, "
        f"and by {MIN_GAIN:.0%}; at least {MIN_WINDOWS} windows each",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for title, default, entries in sections(report.outcome):
        drawn.add_row(f"[dim]{title}[/]")
        for entry in (default, *entries):
            drawn.add_row(*_cells(entry, default))
        drawn.add_section()
    return drawn


def _cells(entry: Entry, default: Entry) -> list[str]:
    seconds = [1e3 * value for value in entry.seconds()]
    peak = max((window.memory["reserved"] for window in entry.windows if "reserved" in window.memory), default=None)
    gain = None if entry is default else entry.gain(default)
    word = "" if entry is default else verdict(entry, default)
    style = _STYLES.get(word, "default")
    return [
        entry.label,
        _NONE if entry.median is None else f"{1e3 * entry.median:.2f}",
        f"{min(seconds):.2f}-{max(seconds):.2f}" if len(seconds) > 1 else _NONE,
        _NONE if gain is None else f"{gain:+.1%}",
        _NONE if peak is None else f"{peak / 2**30:.2f}",
        f"[{style}]{word}[/]" if word else "",
    ]


def conclusion(outcome: Outcome) -> str:
    """Say what was chosen."""
    if outcome.chosen is None:
        return "Not enough time to decide: nothing is remembered. Give it more --minutes."
    short = sum(verdict(entry, outcome.default) == "not enough time" for entry in outcome.singles)
    more = f" For {short} of {len(outcome.singles)} the time was too short: more --minutes may tell." if short else ""
    if not outcome.chosen.settings:
        return f"The defaults stay: nothing is clearly faster here.{more}"
    return f"Chosen: {outcome.chosen.label} ({outcome.gain:+.1%}).{more}"


def as_json(report: Report) -> str:
    """Return everything that was measured."""
    outcome = report.outcome
    content: dict[str, Any] = {
        "schema": 1,
        "simulated": report.device.simulated,
        "device": asdict(report.device),
        "subject": report.subject,
        "precision": report.precision,
        "versions": report.versions,
        "chosen": None if outcome.chosen is None else dict(outcome.chosen.settings),
        "gain": outcome.gain,
        "measured": [
            {"section": title, **_entry(entry, default)}
            for title, default, entries in sections(outcome)
            for entry in (default, *entries)
        ],
        "notes": report.notes,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _entry(entry: Entry, default: Entry) -> dict[str, Any]:
    return {
        "settings": dict(entry.settings),
        "seconds_per_step": entry.seconds(),
        "median": entry.median,
        "gain": None if entry is default else entry.gain(default),
        "verdict": None if entry is default else verdict(entry, default),
        "failure": entry.failure,
        "windows": [asdict(window) for window in entry.windows],
    }
