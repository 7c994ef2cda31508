"""The command `yolo-xpu`.

A command is a module or package of the same name beside this one, with two functions:
`add_arguments(parser: argparse.ArgumentParser) -> None` and `run(args: argparse.Namespace) -> int`, which returns the
exit code. It is imported only when it was chosen, so that `yolo-xpu --help` waits for no PyTorch.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from ..errors import XPUTrainerError

COMMANDS = {
    "bench": "measure images per second of training and inference, plain Ultralytics against this package",
    "demo": "train a small detector of handwritten digits, from nothing to a picture of its predictions",
    "doctor": "say which XPUs there are, what they can do, and why there is none",
    "plugins": "show which plugin implements which hook, in which order they are asked",
}
"""Name of each command, and what it does in a few words."""


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser of `yolo-xpu`, complete for the command `chosen` and by name only for the others."""
    parser = argparse.ArgumentParser(prog="yolo-xpu", description="Train Ultralytics YOLO models on Intel GPUs.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=description)
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
        Exit code: 0 where all went well, 2 where the command refused, with the reason on standard error.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    args = build_parser(chosen).parse_args(argv)
    try:
        code: int = args.run(args)
    except XPUTrainerError as error:
        print(f"yolo-xpu {args.command}: error: {error}", file=sys.stderr)
        return 2
    return code
