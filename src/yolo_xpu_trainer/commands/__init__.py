"""The command `yolo-xpu`.

Each command is a module or package in this one, with two functions: `add_arguments(parser: argparse.ArgumentParser) ->
None` and `run(args: argparse.Namespace) -> int`, which returns the exit code. Only the chosen command is imported, so
that `yolo-xpu --help` doesn't import PyTorch.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import XPUTrainerError

COMMANDS = {
    "autotune": "measure which switches make trainings faster on this GPU, and let later ones take them",
    "bench": "measure images per second of training and inference, with plain Ultralytics and with this package",
    "compare": "validate exported models beside the checkpoint that they were made from, and say which became worse",
    "demo": "train a small detector of handwritten digits on a data set that is drawn on the spot",
    "doctor": "say whether a training works on this machine, and print the commands that fix what doesn't",
    "init": "say which PyTorch wheels to install on this machine, in which order, and write constraints that keep them",
    "options": "list the `xpu_*` options, their defaults and what they do",
    "plugins": "show which plugins implement which hook, in the order in which they are called",
    "train": "run `yolo train`, and go on from the last checkpoint where the device or the driver ends it",
}
"""Each command and its summary."""

_NEEDED = {"torch", "torchvision", "ultralytics", "pluggy", "psutil", "rich", "wrapt"}
"""What is installed with this package, unless pip was told `--no-deps`."""


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser of `yolo-xpu`: with all options of the `chosen` command, and the names of the others."""
    parser = argparse.ArgumentParser(prog="yolo-xpu", description="Train Ultralytics YOLO models on Intel GPUs.")
    parser.add_argument("--version", action="version", version=f"yolo-xpu-trainer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == chosen:
            module = importlib.import_module(f".{name}", __package__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Command line without the program's name, by default that of the process.

    Returns:
        Exit code: the command's own, or that of an error of this package, which is printed to standard error; 2 where
        a package that it needs isn't installed.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    args = build_parser(chosen).parse_args(argv)
    try:
        code: int = args.run(args)
    except XPUTrainerError as error:
        print(f"yolo-xpu {args.command}: error: {error}", file=sys.stderr)
        return error.exit_status
    except ModuleNotFoundError as error:
        if (name := error.name or "").partition(".")[0] not in _NEEDED:
            raise
        print(
            f"yolo-xpu {args.command}: error: {name} isn't installed. `yolo-xpu init` says what to install here, in "
            "which order.",
            file=sys.stderr,
        )
        return 2
    return code
