"""The order of the measurements, and what is left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ... import compiling, devices
from ...upstream.legacy import knows_accelerators
from . import data, telemetry
from .isolation import as_ours, as_plain, clear, first_line, quiet
from .models import Subject
from .results import Case, Implementation, Report, Result
from .settings import WARMUP, Settings
from .timing import NotMeasured, infer, train

__all__ = ["measure"]


def measure(report: Report, subject: Subject, scratch: Path, console: Console) -> bool:
    """Measure everything that was asked for.

    Args:
        report: Says what, and is given the results.
        subject: The model.
        scratch: An empty directory.
        console: Where to show progress.

    Returns:
        Whether it came to its end; it doesn't where the user interrupts it.
    """
    readings: dict[str, list[str]] = {}
    for target in report.targets:
        if target.index is not None:
            readings[target.name], note = telemetry.readable(target.index)
            report.notes += [note] if note else []
    settings = report.settings
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
    )
    # Drawn seldom: what it takes, it takes from the loop that is measured.
    with _current_device(), Progress(*columns, console=console, refresh_per_second=2, transient=True) as progress:
        bar = progress.add_task("drawing images", total=None)
        try:
            source = data.write(scratch, subject, settings.batch, settings.imgsz)
            plan = [_results(case, subject) for case in _cases(report)]
            report.results += itertools.chain.from_iterable(plan)
            due = sum(result.status == "measured" for results in plan for result in results) * settings.repeats
            progress.update(bar, total=due * (WARMUP + settings.steps))
            for results in plan:
                _measure_case(results, subject, settings, source, readings, progress, bar)
        except KeyboardInterrupt:
            report.notes.append("interrupted: what is missing was not measured.")
            report.results[:] = [result for result in report.results if result.windows or result.status != "measured"]
            return False
    return True


def _cases(report: Report) -> Iterator[Case]:
    s = report.settings
    for mode, target, precision in itertools.product(s.modes, report.targets, s.precisions):
        yield Case(mode, target, precision)
        if s.compile:
            yield Case(mode, target, precision, compile=True)


def _results(case: Case, subject: Subject) -> list[Result]:
    """Return a case's results, none measured yet, those that can't be already with the reason."""
    implementations: tuple[Implementation, ...] = ("both",) if case.target.index is None else ("plain", "ours")
    results = [Result(case, implementation) for implementation in implementations]
    for result in results:
        result.reason = _why_not(case, result.implementation, subject)
        result.status = "skipped" if result.reason else "measured"
    return results


def _why_not(case: Case, implementation: Implementation, subject: Subject) -> str:
    """Return why a case can't be measured, "" where it may be tried."""
    from ultralytics import __version__ as version

    if case.target.index is None:
        return "" if case.precision == "fp32" else "on a CPU Ultralytics computes in fp32 only"
    if case.precision == "fp16" and not case.target.has_fp16:
        return f"{case.target.title} has no float16"
    if case.precision == "bf16" and case.mode == "infer":
        return "Ultralytics predicts in fp32 or fp16, with this package too"
    if case.compile and (found := compiling.obstacle(case.target.index)):
        return f"torch.compile doesn't work here: {found}"
    if implementation == "plain":
        if not knows_accelerators():
            return f"Ultralytics {version} knows no XPU; it does since 8.4.111"
        refusal = _refusal_of_bf16() if case.precision == "bf16" else ""
        return f"Ultralytics {version} refuses it ({refusal})" if refusal else ""
    return "" if subject.ours else f"this package has no trainer for what {subject.plain.__name__} trains"


def _refusal_of_bf16() -> str:
    """Return what plain Ultralytics says to bf16 on an XPU, "" where it agrees."""
    with as_plain(), quiet():
        from ultralytics.cfg import get_cfg
        from ultralytics.utils.torch_utils import autocast

        try:
            get_cfg(overrides={"amp": "bf16"})
            autocast(torch.bfloat16, device="xpu")
        except Exception as error:  # of whatever type this version takes
            return first_line(error)
    return ""


def _measure_case(
    results: list[Result],
    subject: Subject,
    settings: Settings,
    source: Path,
    readings: dict[str, list[str]],
    progress: Progress,
    bar: TaskID,
) -> None:
    """Measure a case's implementations in turn: what drifts, such as a temperature, drifts for both."""
    case = results[0].case
    window_of = train if case.mode == "train" else infer
    due = [result for result in results if result.status == "measured"]
    for repeat, result in itertools.product(range(settings.repeats), due):
        done = progress.tasks[bar].completed
        if result.status == "measured":
            who = "" if result.implementation == "both" else f"{result.implementation}, "
            progress.update(bar, description=f"{case}, {who}{repeat + 1} of {settings.repeats}")
            told = readings.get(case.target.name, [])
            try:
                with as_ours() if result.implementation == "ours" else as_plain(), quiet() as warned:
                    window = window_of(
                        subject, case, result.implementation, settings, source, told, lambda: progress.advance(bar)
                    )
                result.windows.append(window)
                result.warnings += [text for text in warned if text not in result.warnings]
            except NotMeasured as error:
                result.fail(str(error))
            except Exception as error:  # whatever a trainer, a driver or a compiler raises is a result too
                result.fail(first_line(error))
            clear(case.target.index)
        progress.update(bar, completed=done + WARMUP + settings.steps)


@contextmanager
def _current_device() -> Iterator[None]:
    """Put back which XPU is the current one, which Ultralytics sets."""
    if not devices.count():
        yield
        return
    before = torch.xpu.current_device()
    try:
        yield
    finally:
        torch.xpu.set_device(before)
