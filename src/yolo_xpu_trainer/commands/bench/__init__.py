"""`yolo-xpu bench`: images per second of training and inference, with plain Ultralytics and with this package.

It downloads nothing, except a model that Ultralytics downloads: the data set is synthetic, and a `.yaml` model is
untrained.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import DEFAULT, add_output, choices, integer, make_directory, model_file
from .settings import DEVICES, MODES, PRECISIONS, WARMUP, WINDOW_SECONDS, Settings, device_words

if TYPE_CHECKING:
    from rich.console import Console

    from .results import Report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = (
        "Training is the complete loop of Ultralytics' trainer in steady state: data loading, forward, loss, backward, "
        "an optimizer step every 64 images, logging; without validation, saving and augmentation. Inference is "
        "YOLO.predict on a batch of images in memory, with pre- and postprocessing. A window starts after "
        f"{WARMUP} warm-up steps and ends after --steps, rounded up to whole optimizer steps, or after about "
        f"{WINDOW_SECONDS} s; the device is synchronized only at its start and end. Runs with plain Ultralytics and "
        "with this package alternate, and each repeat is a separate run. On the CPU both are the same code, which is "
        "measured once."
    )
    add = parser.add_argument
    size = integer(64, step=32)
    add("--model", type=model_file, default="yolo11n.yaml", metavar="FILE", help=f"untrained .yaml, or .pt{DEFAULT}")
    add("--imgsz", type=size, default=640, metavar="PIXELS", help=f"side of the images, a multiple of 32{DEFAULT}")
    add("--batch", type=integer(1), default=16, metavar="N", help=f"images per step{DEFAULT}")
    for option, name, default, known, kind in (
        ("--devices", "devices", "cpu,xpu", DEVICES, device_words),
        ("--precision", "precisions", "fp32,fp16,bf16", PRECISIONS, choices(PRECISIONS)),
        ("--modes", "modes", "train,infer", MODES, choices(MODES)),
    ):
        more = "; xpu:0,1 train together" * (known is DEVICES)
        text = f"any of {', '.join(known)}{more}{DEFAULT}"
        add(option, dest=name, type=kind, default=default, metavar="A,B", help=text)
    add("--compile", action="store_true", help="measure each case with torch.compile, too")
    switches = "measure each training on an XPU with deterministic=False and each switch of this package, too"
    add("--switches", action="store_true", help=switches)
    pure = "measure training with weights in bf16 beside bf16 on an XPU, as a reference: it has no fp32 weights"
    add("--pure-bf16", action="store_true", help=pure)
    add("--steps", type=integer(1), default=32, metavar="N", help=f"steps per window{DEFAULT}")
    add("--repeats", type=integer(1), default=3, metavar="N", help=f"windows per result{DEFAULT}")
    compare = "set bench.json files beside each other, of several machines or versions, and measure nothing"
    add("--compare", nargs="+", type=Path, metavar="FILE", help=compare)
    add_output(parser, "xpu-bench", "bench.json, .png and .md")


def run(args: argparse.Namespace) -> int:
    """Measure, then print and save the results; or print those of files.

    Returns:
        0, also if there is no XPU but another device to measure; 130 if the user interrupted it.

    Raises:
        UsageError: The model can't be loaded, or the output directory can't be made.
        DeviceError: None of the requested devices is available.
        NotBenchResultsError: A file to compare isn't one that a bench wrote.
    """
    from rich.console import Console  # imported here, like everything that imports PyTorch, so that --help is fast

    if args.compare:
        from .compare import beside, read

        Console(file=sys.stdout).print(beside([measured for path in args.compare for measured in read(path)]))
        return 0

    from ..measurement import model
    from . import environment
    from .measuring import measure
    from .results import Report

    settings = Settings.from_arguments(args)
    devices, missing = environment.find_devices(settings.devices)
    chosen = model.load(settings.model)
    directory = make_directory(args.output)
    console = Console(file=sys.stdout)  # the current stdout: while measuring, it is redirected
    for note in missing:
        console.print(note, style="yellow", highlight=False, soft_wrap=True)
    report = Report(settings, environment.describe(devices), devices, notes=[*missing])
    with tempfile.TemporaryDirectory(prefix="xpu-bench-", ignore_cleanup_errors=True) as scratch:
        finished = measure(report, chosen, Path(scratch), console)
    _show(report, directory, console)
    return 0 if finished else 130


def _show(report: Report, directory: Path, console: Console) -> None:
    """Print the tables and the Markdown, and save all files."""
    from rich.text import Text

    from . import output
    from .chart import save

    for mode in report.settings.modes:
        console.print(output.table(report, mode))
    markdown = output.markdown(report)
    console.print("To paste into an issue:\n", style="bold")
    console.print(Text(markdown), soft_wrap=True)  # a line break would end a table row
    files = {"results": "bench.json", "Markdown": "bench.md", "chart": "bench.png"}
    (directory / files["results"]).write_text(output.as_json(report), encoding="utf-8")
    (directory / files["Markdown"]).write_text(markdown, encoding="utf-8")
    save(report, directory / files["chart"])
    for what, name in files.items():
        console.print(Text(f"{what}: {directory / name}"), soft_wrap=True)
