"""`yolo-xpu compare`: what exported models find on a data set, beside the checkpoint that they were made from.

Each is validated by Ultralytics' own `val`, on the same images, padded to the same size. An export can lose everything
without an error (ultralytics#23987: an int8 model that finds nothing), which only such a comparison shows.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .arguments import DEFAULT, integer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Found", "add_arguments", "run", "verdict"]

_TASKS = ("detect", "segment", "pose", "obb", "classify")
_JUDGED = ("mAP50-95", "accuracy_top1")
_HELD = "as good"


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} was given; it must be a number from 0 to 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = (
        "Exit status: 0 where every export is as good as the checkpoint, 1 where one isn't, 2 where one can't be "
        "validated. Without `half` and other settings, each model computes in the precision that it was made with."
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="the .pt that was exported, such as best.pt")
    add("exports", type=Path, nargs="+", metavar="EXPORT", help="what `yolo export` made of it: a file or a folder")
    add("--data", metavar="DATA", help="data set (default: that of the checkpoint's training)")
    add("--split", choices=("val", "test", "train"), default="val", help=f"which of its images{DEFAULT}")
    add("--imgsz", type=integer(32, step=32), metavar="PIXELS", help="side of the images (default: the checkpoint's)")
    add(
        "--batch", type=integer(1), default=16, metavar="N", help=f"images at once, where the model takes them{DEFAULT}"
    )
    add(
        "--device", default="cpu", help=f"where exports run; OpenVINO takes intel:gpu, intel:npu and intel:cpu{DEFAULT}"
    )
    add("--checkpoint-device", default="cpu", metavar="DEVICE", help=f"where the checkpoint runs, such as xpu{DEFAULT}")
    add("--conf", type=_fraction, default=0.25, help=f"detections are counted from this confidence on{DEFAULT}")
    add("--tolerance", type=_fraction, default=0.02, help=f"by how much a mAP may fall{DEFAULT}")


@dataclass
class Found:
    """What a model found.

    Attributes:
        name: The model's.
        metrics: The task's metrics from 0 to 1, such as "mAP50-95(B)", in Ultralytics' order.
        detections: How many are at least as confident as `--conf`; None where the task has none.
        shapes: Heights and widths of the images that it was given, in pixels.
        classes: Their names.
        error: Why it couldn't be validated; then the rest is empty.
    """

    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    detections: int | None = None
    shapes: set[tuple[int, int]] = field(default_factory=set)
    classes: dict[int, str] = field(default_factory=dict)
    error: str = ""


def run(args: argparse.Namespace) -> int:
    """Validate the checkpoint and its exports, and print a table.

    Returns:
        0 where every export is as good as the checkpoint, 1 where one isn't, 2 where one can't be validated.

    Raises:
        UsageError: There is no such model or data set, or the checkpoint finds nothing itself.
    """
    from rich.console import Console

    _refuse_what_is_not_there(args)
    model = _load(args.checkpoint)
    if model.task not in _TASKS:
        raise UsageError(
            f"{args.checkpoint} is of the task {model.task!r}, whose metrics this command doesn't know. "
            f"It compares {', '.join(_TASKS)}; `yolo val` prints the metrics of others."
        )
    trained = model.overrides
    settings = {
        "data": args.data or trained.get("data"),
        "imgsz": args.imgsz or trained.get("imgsz") or 640,
        "split": args.split,
        "batch": args.batch,
    }
    if not settings["data"]:
        raise UsageError(f"{args.checkpoint} doesn't say what it was trained on. Name a data set with --data.")
    reference = validate(args.checkpoint, model.task, args.conf, device=args.checkpoint_device, **settings)
    if reference.error:
        raise UsageError(f"the checkpoint {args.checkpoint} can't be validated: {reference.error}")
    if not all(value > 0 for name, value in reference.metrics.items() if _is_judged(name)):
        raise UsageError(
            f"{args.checkpoint} itself finds nothing on {settings['data']} ({_line(reference)}), so that its exports "
            "can't be worse. Take a trained checkpoint, and the data set that it was trained for."
        )
    found = [validate(path, model.task, args.conf, device=args.device, **settings) for path in args.exports]
    verdicts = [verdict(reference, each, args.tolerance) for each in found]
    console = Console()
    console.print(_table(reference, found, verdicts, args.conf))
    for each in found:
        if each.error:
            console.print(f"{each.name}: {each.error}", style="red", markup=False, highlight=False, soft_wrap=True)
    if any(said not in (_HELD, *_UNTRIED) for said in verdicts):
        return 1
    return 0 if all(said == _HELD for said in verdicts) else 2


_FAILED, _OTHER_SIZE, _OTHER_CLASSES = "not validated", "other image size", "other classes"
_UNTRIED = (_FAILED, _OTHER_SIZE, _OTHER_CLASSES)


def _refuse_what_is_not_there(args: argparse.Namespace) -> None:
    for path in (args.checkpoint, *args.exports):
        if not path.exists():
            raise UsageError(
                f"there is no {path}, which would have been compared. `yolo export` prints where it saved a model; "
                "an OpenVINO model is a folder that ends with _openvino_model."
            )
    if args.checkpoint.suffix != ".pt":
        raise UsageError(
            f"{args.checkpoint} is no checkpoint: its name doesn't end with .pt. The checkpoint comes first, then its "
            "exports."
        )


def _load(checkpoint: Path) -> Any:
    from ultralytics import YOLO

    try:
        return YOLO(str(checkpoint))
    except Exception as error:  # of whatever type unpickling raises
        raise UsageError(
            f"{checkpoint} can't be loaded ({_first_line(error)}). Take a checkpoint that Ultralytics saved, such as "
            "best.pt of a run's folder weights."
        ) from error


def validate(path: Path, task: str, conf: float, **settings: Any) -> Found:
    """Validate a model with Ultralytics' own `val`.

    Args:
        path: The model's file or folder.
        task: The checkpoint's task, because not every format says its own.
        conf: Confidence from which on detections are counted; `val` itself goes down to 0.001.
        settings: Arguments of `val`: data, imgsz, split, batch, device.

    Returns:
        What it found, or its error.
    """
    from ultralytics import YOLO

    found = Found(path.name)
    try:
        model = YOLO(str(path), task=task)
        with tempfile.TemporaryDirectory(prefix="yolo-xpu-", ignore_cleanup_errors=True) as folder:
            metrics = model.val(
                validator=_counting(model._smart_load("validator"), found, None if task == "classify" else conf),
                rect=False,  # Ultralytics pads for models of a fixed size alone, which changes what is found
                plots=False,
                verbose=False,
                project=folder,
                **settings,
            )
    except Exception as error:  # a runtime's own; one model's doesn't end the comparison of others
        found.error = _first_line(error)
        return found
    names = {key: key.removeprefix("metrics/") for key in metrics.results_dict if "mAP" in key or "accuracy" in key}
    found.metrics = {name: float(metrics.results_dict[key]) for key, name in names.items()}
    return found


def _counting(validator: Any, found: Found, conf: float | None) -> type:
    """Return a validator that also notes what it is given, and how many detections come out."""

    def update_metrics(self: Any, preds: Any, batch: Any) -> None:
        found.shapes.add(tuple(batch["img"].shape[-2:]))
        found.classes = dict(self.names)
        if conf is not None:
            found.detections = (found.detections or 0) + _confident(preds, conf)
        validator.update_metrics(self, preds, batch)

    return type(validator.__name__, (validator,), {"update_metrics": update_metrics})


def _confident(preds: Any, conf: float) -> int:
    """Return how many detections of a batch are confident."""
    if isinstance(preds, tuple):  # with the prototypes of masks, before 8.3.158
        preds = preds[0]
    scores = (each["conf"] if isinstance(each, dict) else each[:, 4] for each in preds)
    return sum(int((score >= conf).sum()) for score in scores)


def verdict(reference: Found, found: Found, tolerance: float) -> str:
    """Return what to think of an export.

    An export that finds nothing is lost whatever the tolerance, which may be more than the checkpoint's mAP.
    """
    if found.error:
        return _FAILED
    if found.shapes != reference.shapes:
        return _OTHER_SIZE
    if found.classes != reference.classes:
        return _OTHER_CLASSES
    judged = [
        (before, found.metrics.get(name, math.nan)) for name, before in reference.metrics.items() if _is_judged(name)
    ]
    if not any(after > 0 for _, after in judged):
        return "finds nothing"
    if not all(after >= before - tolerance for before, after in judged):
        return "worse"
    return _HELD


def _is_judged(metric: str) -> bool:
    return metric.startswith(_JUDGED)


def _table(reference: Found, found: Sequence[Found], verdicts: Sequence[str], conf: float) -> Table:
    from rich import box
    from rich.table import Table

    metrics = sorted(reference.metrics, key=lambda name: (name.partition("(")[2], not _is_judged(name)))
    table = Table(
        box=box.SIMPLE_HEAD, caption=f"detections: of a confidence of {conf:g} or more", caption_justify="left"
    )
    table.add_column("model", overflow="fold")
    for name in metrics:
        table.add_column(name.removesuffix("(B)"), justify="right")
        table.add_column("", justify="right")
    table.add_column("detections", justify="right")
    table.add_column("", justify="right")
    table.add_column("verdict")
    for each, said in zip((reference, *found), ("", *verdicts), strict=True):
        cells = []
        for name in metrics:
            cells += _cells(each.metrics.get(name), None if each is reference else reference.metrics[name], ".3f")
        cells += _cells(each.detections, None if each is reference else reference.detections, "d")
        style = None if said in ("", _HELD) else "red"
        table.add_row(each.name, *cells, _advice(each, said), style=style)
    return table


def _cells(value: float | None, before: float | None, form: str) -> list[str]:
    """Return a figure, and its difference to the checkpoint's."""
    if value is None:
        return ["-", ""]
    return [f"{value:{form}}", "" if before is None else f"{value - before:+{form}}"]


def _advice(found: Found, said: str) -> str:
    if said == _OTHER_SIZE and found.shapes:
        height, width = next(iter(found.shapes))
        return f"{said}: {height}×{width}" + f"; --imgsz {height} compares it" * (height == width)
    return said


def _line(found: Found) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.metrics.items())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
