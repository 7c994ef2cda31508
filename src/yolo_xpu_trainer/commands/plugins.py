"""`yolo-xpu plugins`: which plugin implements which hook, in the order in which they are called."""

from __future__ import annotations

import argparse

from ..plugins import manager

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: `yolo-xpu plugins` has no options."""


def run(args: argparse.Namespace) -> int:
    """Print who implements what, in the order in which they are asked.

    Returns:
        0.
    """
    from rich.console import Console
    from rich.table import Table

    pm = manager()
    table = Table("hook", "what it is for", "asked in this order")
    for hook in (getattr(pm.hook, name) for name in sorted(vars(pm.hook)) if name.startswith("xpu_")):
        found = list(reversed(hook.get_hookimpls()))
        asked = [implementation.plugin_name for implementation in found if not implementation.wrapper]
        around = [implementation.plugin_name for implementation in found if implementation.wrapper]
        first = hook.spec is not None and hook.spec.opts.get("firstresult")
        summary = (hook.spec.function.__doc__ or "").strip().splitlines()[0] if hook.spec else ""
        order = (" or else " if first else ", ").join(asked) or "nobody"
        table.add_row(hook.name, summary, " around ".join([*around, order]))
    Console().print(table)
    return 0
