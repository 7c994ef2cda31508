"""`yolo-xpu bench`: images per second of training and inference, plain Ultralytics against this package.

It downloads nothing unless the model is one that Ultralytics downloads: the data set is drawn, and a `.yaml` model
starts untrained.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .settings import DEVICES, MODES, PRECISIONS, WARMUP, WINDOW_SECONDS

if TYPE_CHECKING:
    from rich.console import Console

    from .results import Report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options; `settings.parse` checks their values."""
    parser.epilog = (
        "Training is the whole loop of Ultralytics' trainer in steady state: loading, forward, loss, backward, an "
        "optimizer step whenever 64 images have gone by, logging; without validation, saving and augmentation. "
        "Inference is YOLO.predict on a batch of images in memory, pre- and postprocessing included. "
        f"A window begins after {WARMUP} steps of warm-up and ends after --steps, rounded up to whole optimizer steps, "
        f"or after about {WINDOW_SECONDS} s; the host waits for the device at its two ends only. Plain Ultralytics and "
        "this package take turns, and each repeat is a run of its own. On the CPU they are the same code, which is "
        "measured once."
    )
    default = " (default: %(default)s)"
    add = parser.add_argument
    add("--model", default="yolo11n.yaml", metavar="FILE", help=f"a .yaml, untrained, or a .pt{default}")
    add("--imgsz", default="640", metavar="PIXELS", help=f"side of the images, a multiple of 32{default}")
    add("--batch", default="16", metavar="N", help=f"images a step{default}")
    add("--devices", default="cpu,xpu", metavar="A,B", help=f"any of {', '.join(DEVICES)}{default}")
    add("--precision", default="fp32,fp16,bf16", metavar="A,B", help=f"any of {', '.join(PRECISIONS)}{default}")
    add("--modes", default="train,infer", metavar="A,B", help=f"any of {', '.join(MODES)}{default}")
    add("--compile", action="store_true", help="measure everything with torch.compile, too")
    add("--steps", default="32", metavar="N", help=f"steps in a window{default}")
    add("--repeats", default="3", metavar="N", help=f"windows of each kind{default}")
    output = f"directory for bench.json, .png and .md; if it exists, DIR-2, DIR-3 and so on{default}"
    add("--output", type=Path, default=Path("runs", "xpu-bench"), metavar="DIR", help=output)


def run(args: argparse.Namespace) -> int:
    """Measure, and show and save the figures.

    Returns:
        0, also where there is no XPU but something else to measure; 130 where the user interrupted it.

    Raises:
        UsageError: An option's value is none that it takes, or the output directory can't be made.
        DeviceError: Nothing that was asked for is here.
    """
    from . import settings

    chosen = settings.parse(args)
    # each import from here on brings PyTorch or Ultralytics, which nobody with a mistyped option should wait for
    from rich.console import Console

    from ..demo import new_directory
    from . import environment, models
    from .measuring import measure
    from .results import Report

    targets, absent = environment.find_devices(chosen.devices)
    subject = models.load(chosen.model)
    directory = new_directory(chosen.output)
    console = Console(file=sys.stdout)  # of now: what is measured has its own, which goes nowhere
    for note in absent:
        console.print(note, style="yellow", highlight=False, soft_wrap=True)
    report = Report(chosen, environment.describe(targets), targets, notes=[*absent])
    with tempfile.TemporaryDirectory(prefix="xpu-bench-", ignore_cleanup_errors=True) as scratch:
        finished = measure(report, subject, Path(scratch), console)
    _show(report, directory, console)
    return 0 if finished else 130


def _show(report: Report, directory: Path, console: Console) -> None:
    """Print the table and the Markdown, and save everything."""
    from rich.text import Text

    from . import output
    from .chart import save

    for mode in report.settings.modes:
        console.print(output.table(report, mode))
    markdown = output.markdown(report)
    console.print("To paste into an issue:\n", style="bold")
    # soft_wrap: a table that a terminal's width has broken is none any more
    console.print(Text(markdown), soft_wrap=True)
    files = {"measured": "bench.json", "to paste": "bench.md", "chart": "bench.png"}
    (directory / files["measured"]).write_text(output.as_json(report), encoding="utf-8")
    (directory / files["to paste"]).write_text(markdown, encoding="utf-8")
    save(report, directory / files["chart"])
    for what, name in files.items():
        console.print(Text(f"{what}: {directory / name}"), soft_wrap=True)
