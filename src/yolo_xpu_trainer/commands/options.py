"""`yolo-xpu options`: every `xpu_*` option, its default and what it does, as the policies declare them."""

from __future__ import annotations

import argparse

from ..plugins import declared_options

__all__ = ["add_arguments", "rows", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/options.md")


def rows() -> list[tuple[str, str, str]]:
    """Return each option's keyword, default and sentence, by name."""
    return [
        (option.key, repr(option.default), option.help)
        for option in sorted(declared_options(), key=lambda option: option.name)
    ]


def run(args: argparse.Namespace) -> int:
    """Print the table.

    Returns:
        0.
    """
    from rich.console import Console
    from rich.table import Table

    if args.markdown:
        print("| option | default | what it does |\n|---|---|---|")
        for key, default, what in rows():
            print(f"| `{key}` | `{default}` | {what} |")
        return 0
    table = Table("option", "default", "what it does")
    for key, default, what in rows():
        table.add_row(f"{key}", default, what)
    console = Console()
    console.print(table)
    console.print("As a keyword, on the command line of `yolo`, or in the environment: YOLO_XPU_<NAME>.", markup=False)
    return 0
