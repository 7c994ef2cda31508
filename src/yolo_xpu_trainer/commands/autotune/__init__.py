"""`yolo-xpu autotune`: which switches make trainings faster on the user's own GPU, remembered for later ones.

Nobody has published an A/B of channels_last, fused optimizers or compile on an Intel GPU. Where nothing was measured
beforehand, the user's GPU can tell.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import DEFAULT, add_output, choices, integer, make_directory, model_file

if TYPE_CHECKING:
    from rich.console import Console

    from ...devices import DeviceInfo
    from ..measurement.model import Model
    from .report import Report

__all__ = ["add_arguments", "run"]

_PRECISIONS = ("bf16", "fp16")
_MINUTES = 9.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = (
        "Each switch is tried alone against the defaults, then those that are faster together, in short trainings that "
        "alternate. A switch is taken where each of its windows is faster than each of the defaults', and its median "
        "by 2 % or more; else the default stays. Trainings of the same model family on this GPU take what was chosen, "
        "until the driver, PyTorch or Ultralytics changes: xpu_tuned=False keeps one from it, --forget all. Close what "
        "else uses the GPU or the processor meanwhile."
    )
    add = parser.add_argument
    add("--model", type=model_file, default="yolo11n.yaml", metavar="FILE", help=f"untrained .yaml, or .pt{DEFAULT}")
    add("--imgsz", type=integer(64, step=32), default=640, metavar="PIXELS", help=f"side of the images{DEFAULT}")
    add("--batch", type=integer(1), default=16, metavar="N", help=f"images per step{DEFAULT}")
    add("--device", default="xpu", metavar="XPU", help=f"such as xpu:1{DEFAULT}")
    add("--data", metavar="FILE", help="your data set, loaded and augmented as ever (default: synthetic images)")
    precisions = f"try these, of {', '.join(_PRECISIONS)}, beside the one that trainings have anyway"
    add("--precision", dest="precisions", type=choices(_PRECISIONS), default=[], metavar="A,B", help=precisions)
    add(
        "--only", type=_words, default=[], metavar="A,B", help="try these alone, such as xpu_channels_last,xpu_prefetch"
    )
    add("--compile", action="store_true", help="try torch.compile, which takes minutes, and later runs as well")
    add("--minutes", type=_minutes, default=_MINUTES, metavar="N", help=f"time for everything{DEFAULT}")
    add("--steps", type=integer(1), default=24, metavar="N", help=f"steps per window{DEFAULT}")
    add("--repeats", type=integer(3), default=5, metavar="N", help=f"windows per configuration, at most{DEFAULT}")
    add("--forget", action="store_true", help="forget what was chosen for this GPU, and measure nothing")
    add_output(parser, "xpu-autotune", "autotune.json and .png")


def _words(text: str) -> list[str]:
    """Return the words of a comma-separated list (an argparse type)."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _minutes(text: str) -> float:
    """Return a time in minutes (an argparse type)."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} was given; it must be a number of minutes greater than 0")


def run(args: argparse.Namespace) -> int:
    """Measure, remember the choice, then print and save the results.

    Returns:
        0 if it could decide, also for the defaults; 1 if the time was too short; 130 if the user interrupted it.

    Raises:
        NoXPUError: There is no XPU.
        DeviceError: The device is no single XPU.
        UsageError: The model can't be loaded or trained, or the output directory can't be made.
        NotSavedError: The choice can't be remembered.
    """
    from rich.console import Console

    from ...policies.tuned import choices as remembered
    from ..measurement import model

    device = _device(args.device)
    console = Console(file=sys.stdout)  # the current stdout: while measuring, it is redirected
    if args.forget:
        with _saving(remembered.path()):
            count = remembered.forget(device)
        console.print(f"{device}: {count} choice{'s' * (count != 1)} forgotten.", highlight=False)
        return 0
    chosen = model.load(args.model)
    directory = make_directory(args.output)
    try:
        return _tune(args, device, chosen, directory, console)
    finally:
        with contextlib.suppress(OSError):  # it isn't empty
            directory.rmdir()


def _device(requested: str) -> DeviceInfo:
    """Return the XPU that was asked for.

    Raises:
        NoXPUError: There is none here.
        UsageError: Another device, or several.
    """
    from ... import devices
    from ...errors import NoXPUError, UsageError

    if reason := devices.why_none():
        raise NoXPUError(
            f"autotune measures switches that act on Intel GPUs only, and there is none here: {reason.seen}. On "
            f"another device trainings are plain Ultralytics', and there is nothing to choose. {reason.remedy}",
            requested=requested,
            seen=reason.seen,
        )
    indices = devices.resolve(requested, prefer_xpu=True)
    if indices is None or len(indices) != 1:
        raise UsageError(
            f"--device={requested} is not one XPU, and what is faster is measured on one. This process sees "
            f"{devices.describe()}. Name one, such as --device=xpu:0."
        )
    return devices.info(indices[0])


def _tune(args: argparse.Namespace, device: DeviceInfo, model: Model, directory: Path, console: Console) -> int:
    import torch
    from ultralytics import __version__ as ultralytics

    from ... import __version__
    from ...plugins import hooks
    from ..measurement.devices import xpu
    from .report import Report, doubts
    from .switches import find_switches, only

    default = hooks().xpu_precision(device=device, requested=True)
    precision = default.name
    others = [name for name in args.precisions if name != precision]
    switches, notes = find_switches(device, precisions=others, workers=bool(args.data), compiled=args.compile)
    if args.only:
        switches, notes = only(args.only, switches, notes)
    report = Report(
        xpu(device),
        f"{Path(args.model).stem}, imgsz {args.imgsz}, batch {args.batch}",
        precision,
        {"torch": torch.__version__, "Ultralytics": ultralytics, "yolo-xpu-trainer": __version__},
        notes=notes,
    )
    with tempfile.TemporaryDirectory(prefix="xpu-autotune-", ignore_cleanup_errors=True) as scratch:
        finished = _measure(args, report, model, [{s.keyword: s.value} for s in switches], Path(scratch), console)
    if not finished:
        console.print("Interrupted: nothing is remembered.", style="yellow")
        return 130
    if report.outcome.default.failure:
        from ...errors import UsageError

        raise UsageError(
            f"the defaults can't be measured: {report.outcome.default.failure}. Choose another --model, --batch or "
            "--imgsz with which a training runs."
        )
    report.notes += doubts(report)
    _show(report, directory, console)
    if report.outcome.chosen and not report.outcome.chosen.settings and (args.only or report.outcome.is_undecided):
        return 0  # which says nothing against what an older choice has
    _remember(args, report, device, model)
    return 1 if report.outcome.chosen is None else 0


def _measure(
    args: argparse.Namespace,
    report: Report,
    model: Model,
    switches: list[dict[str, Any]],
    scratch: Path,
    console: Console,
) -> bool:
    """Search; return whether it finished, False if the user interrupted it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..measurement.cases import Case
    from ..measurement.data import write_data
    from ..measurement.isolation import clear, keep_current_device
    from ..measurement.timers import timer
    from ..measurement.timing import Job
    from .measuring import Sizes, measurer, with_users_data
    from .search import Budget, Entry, search

    budget = Budget(60 * args.minutes)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with keep_current_device(), Progress(*columns, console=console, refresh_per_second=2, transient=True) as progress:
        bar = progress.add_task("drawing images", total=60 * args.minutes)

        def show(entry: Entry) -> None:
            done = 60 * args.minutes - budget.left()
            progress.update(bar, description=f"{entry.label}, {len(entry.windows) + 1}", completed=done)

        try:
            data = args.data or write_data(scratch / "data", model, args.batch, args.imgsz)
            arguments = with_users_data() if args.data else {}
            sizes = Sizes(args.imgsz, args.batch, args.steps)
            job = Job(model, sizes, scratch, data, {}, int, arguments=arguments, timer=timer)
            measure = measurer(job, Case("train", report.device, report.precision), budget, show)
            search(report.outcome, switches, measure, budget, args.repeats)
        except KeyboardInterrupt:
            return False
        finally:
            clear(report.device.index)
    return True


def _remember(args: argparse.Namespace, report: Report, device: DeviceInfo, model: Model) -> None:
    """Write down what was chosen, also if it is the defaults, which take the place of an older choice."""
    from datetime import datetime, timezone

    from ...policies.tuned import choices as remembered

    chosen = report.outcome.chosen
    if chosen is None:
        return
    settings = dict(chosen.settings)
    precision = str(settings.pop("amp", ""))
    prefix = "xpu_"
    options = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    choice = remembered.Choice(
        options=options,
        arguments={name: value for name, value in settings.items() if not name.startswith(prefix)},
        precision=precision,
        gain=round(report.outcome.gain, 4),
        measured=report.subject,
        date=datetime.now(timezone.utc).date().isoformat(),
    )
    with _saving(remembered.path()):
        remembered.keep(remembered.place(device, remembered.family(args.model, model.task)), choice)


@contextlib.contextmanager
def _saving(path: Path) -> Any:
    from ...errors import NotSavedError

    try:
        yield
    except OSError as error:
        raise NotSavedError(
            f"what was chosen can't be remembered in {path} ({error.strerror or error}). Make it writable, or name "
            "another directory in YOLO_CONFIG_DIR.",
            path=str(path),
            errno=error.errno,
        ) from error


def _show(report: Report, directory: Path, console: Console) -> None:
    """Print the table and what was chosen, and save all files."""
    from rich.text import Text

    from ...policies.tuned import choices as remembered
    from . import chart
    from .report import as_json, conclusion, table

    console.print(table(report))
    for note in report.notes:
        console.print(Text(f"- {note}"), soft_wrap=True)
    console.print(Text(conclusion(report.outcome), style="bold"), soft_wrap=True)
    (directory / "autotune.json").write_text(as_json(report), encoding="utf-8")
    chart.save(report, directory / "autotune.png")
    files = {"results": directory / "autotune.json", "chart": directory / "autotune.png"}
    if report.outcome.chosen is not None:
        files["remembered in"] = remembered.path()
    for what, path in files.items():
        console.print(Text(f"{what}: {path}"), soft_wrap=True)
