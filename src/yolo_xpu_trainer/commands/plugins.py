"""`yolo-xpu plugins`: which plugins implement which hook, in the order in which they are called."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from ..plugins import manager

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options."""


def run(args: argparse.Namespace) -> int:
    """Print the hooks and their plugins.

    Returns:
        0.
    """
    hooks = manager().hook
    table = Table("hook", "purpose", "plugins, in calling order")
    for hook in (getattr(hooks, name) for name in sorted(vars(hooks)) if name.startswith("xpu_")):
        found = list(reversed(hook.get_hookimpls()))
        plain = [implementation.plugin_name for implementation in found if not implementation.wrapper]
        wrappers = [implementation.plugin_name for implementation in found if implementation.wrapper]
        separator = " or else " if hook.spec is not None and hook.spec.opts.get("firstresult") else ", "
        purpose = (hook.spec.function.__doc__ or "").strip().splitlines()[0] if hook.spec else ""
        table.add_row(hook.name, purpose, " around ".join([*wrappers, separator.join(plain) or "none"]))
    Console().print(table)
    return 0
