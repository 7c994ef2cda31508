"""Option types and the `--output` option, shared by the commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

from ..errors import UsageError

__all__ = ["DEFAULT", "add_output", "choices", "integer", "make_directory", "model_file"]

DEFAULT = " (default: %(default)s)"
"""End of an option's help text."""


def integer(low: int, step: int = 1) -> Callable[[str], int]:
    """Return an argparse type: an integer of at least `low` that is a multiple of `step`."""
    wanted = f"an integer of at least {low}" + f" and a multiple of {step}" * (step > 1)

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or value % step:
            raise argparse.ArgumentTypeError(f"{text!r} was given; it must be {wanted}")
        return value

    return parse


def choices(known: Collection[str], accept: Callable[[str], bool] = lambda word: False) -> Callable[[str], list[str]]:
    """Return an argparse type: a comma-separated list of `known` words, or others that `accept` accepts, each once."""

    def parse(text: str) -> list[str]:
        words = list(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
        unknown = ", ".join(repr(word) for word in words if word not in known and not accept(word))
        if unknown or not words:
            expected = f"a comma-separated list of {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"{unknown or 'nothing'} was given; it must be {expected}")
        return words

    return parse


def model_file(text: str) -> str:
    """Return the name of a model that can be trained (an argparse type)."""
    if not text.endswith((".yaml", ".yml", ".pt")):
        raise argparse.ArgumentTypeError(
            f"{text!r} can't be trained: it is neither a .yaml nor a .pt. "
            "Choose an architecture, such as yolo11n.yaml, or a checkpoint, such as yolo11n.pt."
        )
    return text


def add_output(parser: argparse.ArgumentParser, default: str, contents: str) -> None:
    """Add `--output`, the directory for the `contents`."""
    text = f"directory for {contents}; if it exists, DIR-2, DIR-3 and so on{DEFAULT}"
    parser.add_argument("--output", type=Path, default=Path("runs", default), metavar="DIR", help=text)


def make_directory(wanted: Path) -> Path:
    """Make and return the first of `wanted`, `wanted`-2, `wanted`-3 … that doesn't exist, as an absolute path.

    Raises:
        UsageError: It can't be made.
    """
    from ultralytics.utils.files import increment_path

    try:
        return Path(increment_path(wanted.resolve(), sep="-", mkdir=True))
    except OSError as error:
        raise UsageError(
            f"can't create the directory {wanted.resolve()} ({error.strerror or error}). "
            "Choose a directory that you may write to with --output."
        ) from error
