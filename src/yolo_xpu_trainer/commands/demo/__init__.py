"""`yolo-xpu demo`: a complete training run on data that is drawn on the spot.

It downloads nothing: the digits come with scikit-learn, the images are drawn, and the model is untrained.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError
from ..arguments import DEFAULT, add_output, integer, make_directory

if TYPE_CHECKING:
    from .dataset import DataSet
    from .training import Trained

MIN_IMAGES = 10
"""With fewer images, fewer than two would be held out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    images, size = integer(MIN_IMAGES), integer(64, step=32)
    add = parser.add_argument
    add("--epochs", type=integer(1), default=10, metavar="N", help=f"passes over the training images{DEFAULT}")
    add("--images", type=images, default=1000, metavar="N", help=f"images to draw; a fifth is held out{DEFAULT}")
    add("--imgsz", type=size, default=128, metavar="PIXELS", help=f"side of the images, a multiple of 32{DEFAULT}")
    add("--seed", type=integer(0), default=0, metavar="N", help=f"seed of the data set and the model{DEFAULT}")
    add("--device", help="such as xpu, xpu:1 or cpu (default: the XPU; without one, Ultralytics' own choice)")
    add_output(parser, "xpu-demo", "the run")


def run(args: argparse.Namespace) -> int:
    """Draw the data, train, and print the result.

    Raises:
        UsageError: scikit-learn isn't installed, or the output directory can't be made.
        DeviceError: There is no such device.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError(
            "scikit-learn is not installed, and the demo takes its handwritten digits from it. "
            "Install it with: pip install scikit-learn"
        )
    from ... import devices  # imported here, like everything that imports PyTorch, so that --help is fast

    devices.resolve(args.device, prefer_xpu=True)  # before anything is written
    directory = make_directory(args.output)
    started = time.perf_counter()

    from .training import train

    data = draw_data(directory / "data", args.images, args.imgsz, args.seed)
    trained = train(
        data.description, directory, epochs=args.epochs, imgsz=args.imgsz, seed=args.seed, device=args.device
    )
    report(data, trained, time.perf_counter() - started)
    return 0


def draw_data(root: Path, images: int, size: int, seed: int) -> DataSet:
    """Write the data set to `root`, with a progress bar."""
    from rich.progress import Progress

    from .dataset import write_dataset

    with Progress() as progress:
        task = progress.add_task("Drawing images of handwritten digits", total=images)
        return write_dataset(root, images, size, seed, on_image=lambda: progress.advance(task))


def report(data: DataSet, trained: Trained, seconds: float) -> None:
    """Print the scores and where the files are.

    Args:
        data: The data set.
        trained: The result of the training.
        seconds: Duration of the demo.
    """
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    images, digits = data.images, data.digits
    scores = Table.grid(padding=(0, 2))
    scores.add_row("mAP50", f"[bold green]{trained.map50:.3f}")
    scores.add_row("mAP50-95", f"[bold green]{trained.map50_95:.3f}")
    scores.add_row("measured on", f"{images['val']} held-out images with {digits['val']} digits")
    scores.add_row("trained on", f"{images['train']} images with {digits['train']} digits, device {trained.device}")
    scores.add_row("time", f"{seconds / 60:.1f} minutes")
    console = Console()
    console.print(Panel(scores, title="yolo-xpu demo", expand=False))
    for what, path in {
        "weights": trained.weights,
        "plots": trained.directory,
        "held-out images with labels": trained.directory / "val_batch0_labels.jpg",
        "held-out images with predictions": trained.directory / "val_batch0_pred.jpg",
        "data set": data.description,
    }.items():
        console.print(Text(f"{what}: {path}"), soft_wrap=True)  # a line break would prevent copying the path
