"""The report as a bar chart."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import figure, ratio
from .results import MEASURED, TITLES, Case, Report, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save"]

# Distinguishable with any colour vision, and in grey (the palette of Okabe and Ito).
_COLOURS = {"plain": "#999999", "ours": "#0072B2", "both": "#E69F00"}
_LEGEND = {"plain": "plain Ultralytics", "ours": "with yolo-xpu-trainer", "both": "CPU: the same code for both"}
_WIDTH = 0.38


def save(report: Report, path: Path) -> None:
    """Draw images per second by device and precision, a panel for each mode, and write a PNG.

    The figure is made without pyplot, which would choose a backend for the whole process.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    # Switches are left out: the chart would be too wide, and `yolo-xpu autotune` draws one of them.
    modes = [mode for mode in MEASURED if mode in report.settings.modes]
    panels = {mode: [tried for tried in report.tried(mode) if not tried[0].switch] for mode in modes}
    groups = max((len(cases) for cases in panels.values()), default=1)
    width = max(7.0, 1.6 + 1.35 * groups)
    drawing = Figure(figsize=(width, 1.7 + 3.2 * len(panels)), dpi=150, layout="constrained")
    title, details = _texts(report, characters=int(width * 12))
    drawing.suptitle(title, fontsize=12, fontweight="bold", color="#b00020" if report.simulated else "black")
    drawing.supxlabel(details, fontsize=8, color="#555555")
    all_axes: Any = drawing.subplots(len(panels), 1, squeeze=False)
    for axes, (mode, cases) in zip(all_axes[:, 0], panels.items(), strict=True):
        _panel(axes, TITLES[mode], cases, report)
        axes.set_xlim(-0.6, groups - 0.4)  # the same bar width in every panel
    shown = {result.implementation for result in report.results if result.windows}
    handles = [Patch(color=_COLOURS[name], label=_LEGEND[name]) for name in _COLOURS if name in shown]
    if handles:  # above the first panel, beside its title
        style: Any = {"frameon": False, "fontsize": 9, "borderaxespad": 0.3, "columnspacing": 1.2, "handlelength": 1.2}
        all_axes[0, 0].legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), **style)
    drawing.savefig(path)


def _texts(report: Report, characters: int) -> tuple[str, str]:
    """Return the title and the small print, in lines of at most so many characters."""
    e = report.environment
    xpus = [device for device in report.devices if device.index is not None]
    names = dict.fromkeys(device.label for device in xpus or report.devices)
    title = textwrap.wrap(f"{report.subject} on {', '.join(names)}", characters)
    if report.simulated:
        title.insert(0, "SIMULATED XPU: no hardware was measured")
    versions = [f"{device.name} driver {device.driver}" for device in xpus]
    versions += [f"torch {e['torch']}", f"Ultralytics {e['ultralytics']}"]
    versions += [f"yolo-xpu-trainer {e['yolo_xpu_trainer']}", e["os"]]
    details = [", ".join(versions)]
    if report.settings.repeats > 1:
        details.append(f"Bars: median of {report.settings.repeats} windows; lines: lowest to highest window")
    return "\n".join(title), "\n".join(part for text in details for part in textwrap.wrap(text, int(characters * 1.4)))


def _panel(axes: Axes, title: str, cases: list[tuple[Case, dict[str, Result]]], report: Report) -> None:
    """Draw one mode: a group of bars for each case."""
    top = max((max(r.figures(), default=0) for _, results in cases for r in results.values()), default=0) or 1.0
    for position, (_, results) in enumerate(cases):
        offsets = [0.0] if len(results) == 1 else [-_WIDTH / 2, _WIDTH / 2]
        for offset, result in zip(offsets, results.values(), strict=True):
            _bar(axes, position + offset, result, top)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axes.set_ylabel("images per second")
    axes.set_ylim(0, top * 1.22)
    axes.set_xticks(range(len(cases)), [_tick(case, results, report) for case, results in cases], fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _bar(axes: Axes, x: float, result: Result, top: float) -> None:
    """Draw one bar with its value above, or a word if there is no value."""
    if result.median is None:
        text = "failed" if result.status == "failed" else "n/a"
        axes.text(x, top * 0.02, text, ha="center", va="bottom", rotation=90, fontsize=8, color="#777777")
        return
    figures = result.figures()
    below, above = result.median - min(figures), max(figures) - result.median
    axes.bar(
        x,
        result.median,
        _WIDTH * 0.94,
        color=_COLOURS[result.implementation],
        yerr=[[below], [above]] if len(figures) > 1 else None,
        capsize=3,
        error_kw={"elinewidth": 1, "ecolor": "#222222"},
    )
    axes.text(x, max(figures) + top * 0.02, figure(result.median), ha="center", va="bottom", fontsize=8)


def _tick(case: Case, results: dict[str, Result], report: Report) -> str:
    ratios = [f"{ratio(report, results['ours'])} x"] if "ours" in results and report.ratio(results["ours"]) else []
    return "\n".join([case.device.name, *case.variant.split(), *ratios])
