"""`yolo-xpu demo`: a whole training run on data that is made on the spot.

It downloads nothing: the digits come with scikit-learn, the scenes are drawn, and the model starts untrained.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError

if TYPE_CHECKING:
    from .dataset import DataSet
    from .training import Trained

MIN_IMAGES = 10
"""Fewer leave less than two images to measure on."""


def whole_number(low: int, step: int = 1) -> Callable[[str], int]:
    """Return an argparse type: whole numbers from `low` on, in steps of `step`."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low or value % step:
            multiple = f" and a multiple of {step}" if step > 1 else ""
            raise argparse.ArgumentTypeError(f"{value} was given; it must be at least {low}{multiple}")
        return value

    parse.__name__ = "whole number"  # argparse puts it into "invalid … value"
    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    epochs, images, size, seed = whole_number(1), whole_number(MIN_IMAGES), whole_number(64, step=32), whole_number(0)
    default = " (default: %(default)s)"
    add = parser.add_argument
    add("--epochs", type=epochs, default=10, metavar="N", help=f"passes over the training images{default}")
    add("--images", type=images, default=1000, metavar="N", help=f"scenes to draw, a fifth of them held out{default}")
    add("--imgsz", type=size, default=128, metavar="PIXELS", help=f"side of a scene, a multiple of 32{default}")
    add("--seed", type=seed, default=0, metavar="N", help=f"another seed, another data set and model{default}")
    add("--device", help="such as xpu, xpu:1 or cpu (default: the XPU; without one, Ultralytics' own choice)")
    output = f"directory for the run; if it exists, DIR-2, DIR-3 and so on{default}"
    add("--output", type=Path, default=Path("runs", "xpu-demo"), metavar="DIR", help=output)


def run(args: argparse.Namespace) -> int:
    """Make the data, train, and show the outcome.

    Raises:
        UsageError: scikit-learn is absent, or the output directory can't be made.
        DeviceError: There is no such device.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError(
            "scikit-learn is not installed here, and the demo takes its handwritten digits from it. "
            'Install it with: pip install "yolo-xpu-trainer[demo]"'
        )
    # each import brings PyTorch, Ultralytics or OpenCV along, which nobody with a mistyped option should wait for
    from ... import devices

    devices.resolve(args.device, prefer_xpu=True)  # asked here already, so that a refusal leaves no directory behind
    directory = new_directory(args.output)
    started = time.perf_counter()

    from .picture import save_comparison
    from .training import train

    data = make_data(directory / "data", args.images, args.imgsz, args.seed)
    trained = train(
        data.description, directory, epochs=args.epochs, imgsz=args.imgsz, seed=args.seed, device=args.device
    )
    picture = directory / "predictions.png"
    save_comparison(trained, data, picture)
    report(data, trained, picture, time.perf_counter() - started)
    return 0


def new_directory(wanted: Path) -> Path:
    """Make and return the first of `wanted`, `wanted`-2, `wanted`-3 … that doesn't exist yet, as an absolute path."""
    wanted = wanted.resolve()
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = wanted if number == 1 else wanted.parent / f"{wanted.name}-{number}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise UsageError(
            f"{wanted} can't be made ({error.strerror or error}), so the run has no place for its data and weights. "
            "Name a directory that you may write to with --output."
        ) from error
    raise AssertionError("itertools.count() ended")


def make_data(root: Path, images: int, size: int, seed: int) -> DataSet:
    """Draw the data set below `root`, with a progress bar."""
    from rich.progress import Progress

    from .dataset import write_dataset

    with Progress() as progress:
        task = progress.add_task("Drawing scenes with handwritten digits", total=images)
        return write_dataset(root, images, size, seed, on_image=lambda: progress.advance(task))


def report(data: DataSet, trained: Trained, picture: Path, seconds: float) -> None:
    """Print how well the model does and where everything is.

    Args:
        data: What it was trained and measured on.
        trained: The outcome.
        picture: Where predictions stand beside the truth.
        seconds: Wall time of the whole demo.
    """
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    scores = Table.grid(padding=(0, 2))
    scores.add_row("mAP50", f"[bold green]{trained.map50:.3f}")
    scores.add_row("mAP50-95", f"[bold green]{trained.map50_95:.3f}")
    scores.add_row(
        "measured on",
        f"{data.images['val']} scenes with {data.digits['val']} digits, none of them trained on",
    )
    scores.add_row(
        "trained on", f"{data.images['train']} scenes with {data.digits['train']} digits, device {trained.device}"
    )
    scores.add_row("took", f"{seconds / 60:.1f} minutes")
    console = Console()
    console.print(Panel(scores, title="yolo-xpu demo", expand=False))
    places = {
        "weights": trained.weights,
        "plots": trained.directory,
        "truth beside prediction": picture,
        "data set": data.description,
    }
    for what, path in places.items():
        # soft_wrap: a path that a terminal's width has broken can't be copied
        console.print(Text(f"{what}: {path}"), soft_wrap=True)
