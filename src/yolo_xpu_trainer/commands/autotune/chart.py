"""The report as a chart: how much faster each configuration is than the defaults."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import Report, conclusion, sections
from .search import Entry, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save"]

# Distinguishable with any colour vision, and in grey (the palette of Okabe and Ito).
_COLOURS = {"faster": "#0072B2", "slower": "#D55E00"}
_GREY = "#999999"
_ROOM = 0.3  # of the axis' length, for the words beside the longest bar


def save(report: Report, path: Path) -> None:
    """Draw a bar for each configuration, and write a PNG.

    The figure is made without pyplot, which would choose a backend for the whole process.
    """
    from matplotlib.figure import Figure

    shown = list(sections(report.outcome))
    rows = [1 + len(entries) for _, _, entries in shown] or [1]
    drawing = Figure(figsize=(8.5, 1.9 + 0.36 * sum(rows) + 0.5 * len(rows)), dpi=150, layout="constrained")
    title = textwrap.wrap(f"{report.subject}, {report.precision} on {report.device.label}", 90)
    if report.device.simulated:
        title.insert(0, "SIMULATED XPU: no hardware was measured")
    colour = "#b00020" if report.device.simulated else "black"
    drawing.suptitle("\n".join(title), fontsize=12, fontweight="bold", color=colour)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    small = textwrap.wrap(conclusion(report.outcome), 110) + textwrap.wrap(
        f"driver {report.device.driver}, {versions}", 110
    )
    drawing.supxlabel("\n".join(small), fontsize=8, color="#555555")
    if shown:
        all_axes: Any = drawing.subplots(len(shown), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": rows})
        for axes, (name, default, entries) in zip(all_axes[:, 0], shown, strict=True):
            _panel(axes, name, default, entries)
        low, high = all_axes[0, 0].get_xlim()
        all_axes[0, 0].set_xlim(low, high + _ROOM * (high - low))
        all_axes[-1, 0].set_xlabel(
            "images per second, against the defaults' median; lines: lowest to highest window", fontsize=9
        )
    drawing.savefig(path)


def _panel(axes: Axes, title: str, default: Entry, entries: list[Entry]) -> None:
    for position, entry in enumerate((default, *entries)):
        _bar(axes, position, entry, default)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
    labels = [textwrap.fill(entry.label.replace(", ", ",\n"), 60) for entry in (default, *entries)]
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.0f} %")
    axes.xaxis.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _bar(axes: Axes, y: int, entry: Entry, default: Entry) -> None:
    """Draw one bar with its value beside, or a word if there is no value."""
    word = "" if entry is default else verdict(entry, default)
    if entry.median is None or default.median is None:
        axes.text(0, y, f"  {word}", ha="left", va="center", fontsize=8, color="#777777")
        return
    reference = default.median
    gains = [100 * (reference / seconds - 1) for seconds in entry.seconds()]
    value = 100 * (reference / entry.median - 1)
    spread = [[value - min(gains)], [max(gains) - value]]
    style: Any = {"elinewidth": 1, "ecolor": "#222222"}
    axes.barh(y, value, 0.62, color=_COLOURS.get(word, _GREY), xerr=spread, capsize=2, error_kw=style)
    text = f"{1e3 * entry.median:.2f} ms" if entry is default else f"{value:+.1f} %, {word}"
    beside = (max(0.0, *gains), y)  # never on the left, where the names are
    axes.annotate(text, beside, xytext=(6, 0), textcoords="offset points", ha="left", va="center", fontsize=8)
