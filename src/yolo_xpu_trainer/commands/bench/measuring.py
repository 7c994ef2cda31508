"""The measurements in their order, and which cases are skipped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ... import devices
from ...policies import compile
from ...versions import knows_accelerators
from ..measurement import several, telemetry
from ..measurement.cases import PURE_BF16, Implementation, Switch
from ..measurement.data import write_data
from ..measurement.isolation import clear, first_line, keep_current_device, plain_ultralytics, quiet, with_package
from ..measurement.model import Model
from ..measurement.switches import switches_of_options
from ..measurement.timing import Job, NotMeasured, infer, train
from .results import Case, Device, Report, Result
from .settings import WARMUP

__all__ = ["measure"]

_PURE_BF16 = (
    "pure bf16: Ultralytics' loop with weights and optimizer in bf16, without autocast and without fp32 weights, as "
    "getitune trains. It is a reference for speed: updates below bf16's rounding of a weight are lost."
)


def measure(report: Report, model: Model, scratch: Path, console: Console) -> bool:
    """Measure everything that was requested.

    Args:
        report: Contains the settings, and receives the results.
        model: The model.
        scratch: An empty directory.
        console: Where to show progress.

    Returns:
        Whether it finished; False if the user interrupted it.
    """
    readings: dict[str, list[str]] = {}
    for device in report.devices:
        if device.index is not None and not device.indices:
            readings[device.name], note = telemetry.readable(device.index)
            report.notes += [note] if note else []
    settings = report.settings
    if settings.switches and not ("train" in settings.modes and readings):
        report.notes.append("--switches adds nothing here: switches are of trainings on an XPU.")
    if settings.pure_bf16:
        useful = "train" in settings.modes and "bf16" in settings.precisions and readings
        report.notes.append(_PURE_BF16 if useful else "--pure-bf16 adds nothing here: it stands beside bf16 on an XPU.")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
    )
    # Refreshed rarely, because drawing the bar slows down the loop that is measured.
    with keep_current_device(), Progress(*columns, console=console, refresh_per_second=2, transient=True) as progress:
        bar = progress.add_task("drawing images", total=None)
        try:
            data = write_data(scratch / "data", model, settings.batch, settings.imgsz)
            job = Job(model, settings, scratch, data, readings, on_step=lambda: progress.advance(bar))
            plan = [[r for case in cases for r in _results(case, model)] for cases in _cases(report)]
            report.results += itertools.chain.from_iterable(plan)
            due = sum(result.status == "measured" for results in plan for result in results) * settings.repeats
            progress.update(bar, total=due * (WARMUP + settings.steps))
            for results in plan:
                _measure_alternately(results, job, report, progress, bar)
        except KeyboardInterrupt:
            report.notes.append("interrupted: results are missing.")
            report.results[:] = [result for result in report.results if result.windows or result.status != "measured"]
            return False
    return True


def _cases(report: Report) -> Iterator[list[Case]]:
    """Yield the cases whose measurements alternate."""
    s = report.settings
    alone = [device for device in report.devices if not device.indices]
    switches = {device.name: _switches(report, device) for device in alone} if s.switches else {}
    for mode, device, precision in itertools.product(s.modes, report.devices, s.precisions):
        case = Case(mode, device, precision)
        if device.indices:  # they train together, and nothing else
            if mode == "train":
                yield [case]
            continue
        group = [case]
        if mode == "train":
            group += [replace(case, switch=switch) for switch in switches.get(device.name, [])]
            if s.pure_bf16 and precision == "bf16" and device.index is not None:
                group.append(replace(case, precision=PURE_BF16))
        yield group
        if s.compile:
            yield [replace(case, compile=True)]


def _switches(report: Report, device: Device) -> list[Switch]:
    """Return what to try on a device, and note what isn't."""
    if device.index is None:
        return []
    found, notes = switches_of_options(devices.info(device.index), every=True)
    report.notes += [note for note in notes if note not in report.notes]
    return [Switch("deterministic", False), *found]


def _results(case: Case, model: Model) -> list[Result]:
    """Return a case's results, not measured yet; those that aren't possible are marked as skipped."""
    implementations: tuple[Implementation, ...] = ("both",) if case.device.index is None else ("plain", "ours")
    if any(name.startswith("xpu_") for name in case.arguments):
        implementations = ("ours",)
    elif case.precision == PURE_BF16:
        implementations = ("plain",)
    results = [Result(case, implementation) for implementation in implementations]
    for result in results:
        result.reason = _why_not(case, result.implementation, model)
        result.status = "skipped" if result.reason else "measured"
    return results


def _why_not(case: Case, implementation: Implementation, model: Model) -> str:
    """Return why a case can't be measured, "" if it may be possible."""
    from ultralytics import __version__ as version

    if case.device.index is None:
        return "" if case.precision == "fp32" else "on a CPU, Ultralytics only supports fp32"
    if case.precision == "fp16" and not case.device.has_fp16:
        return f"{case.device.title} doesn't support float16"
    if case.precision == "bf16" and case.mode == "infer":
        return "Ultralytics only predicts in fp32 or fp16"
    if case.compile and (found := compile.problem(case.device.index)):
        return f"torch.compile doesn't work on this device: {found}"
    if implementation == "plain":
        if not knows_accelerators():
            return f"Ultralytics {version} has no XPU support; versions from 8.4.111 on have"
        refusal = _refusal_of_bf16() if case.precision == "bf16" else ""
        return f"Ultralytics {version} refuses it ({refusal})" if refusal else ""
    return "" if model.ours else f"this package has no counterpart of {model.plain.__name__}"


def _refusal_of_bf16() -> str:
    """Return plain Ultralytics' error for bf16 on an XPU, "" if there is none."""
    with plain_ultralytics(), quiet():
        from ultralytics.cfg import get_cfg
        from ultralytics.utils.torch_utils import autocast

        try:
            get_cfg(overrides={"amp": "bf16"})
            autocast(torch.bfloat16, device="xpu")
        except Exception as error:  # the type depends on the version
            return first_line(error)
    return ""


def _measure_alternately(results: list[Result], job: Job, report: Report, progress: Progress, bar: TaskID) -> None:
    """Measure what is compared in turns, so that a drift, such as of the temperature, affects all of it."""
    repeats = report.settings.repeats
    # What autotune chose may be one of the switches, which are compared with the defaults.
    of_ours = replace(job, arguments={**job.arguments, "xpu_tuned": False}) if report.settings.switches else job
    due = [result for result in results if result.status == "measured"]
    for repeat, result in itertools.product(range(repeats), due):
        done = progress.tasks[bar].completed
        case, ours = result.case, result.implementation == "ours"
        together = case.device.indices
        window_of = infer if case.mode == "infer" else several.train if together else train
        if result.status == "measured":
            progress.update(bar, description=f"{result}, {repeat + 1} of {repeats}")
            try:
                with with_package() if ours else plain_ultralytics(), quiet() as warned:
                    window = window_of(of_ours if ours else job, case, result.implementation)
                result.windows.append(window)
                result.warnings += [text for text in warned if text not in result.warnings]
            except NotMeasured as error:
                result.fail(str(error))
            except Exception as error:  # an error of a trainer, a driver or a compiler is a result, too
                result.fail(first_line(error))
            clear(case.device.index)
        progress.update(bar, completed=done + WARMUP + job.settings.steps)
