"""Plugins of somebody else, for tests: registered for a block, or written and found by an entry point."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from yolo_xpu_trainer import plugins

GROUP = "yolo_xpu_trainer"


@contextmanager
def registered(plugin: object) -> Iterator[None]:
    """Have a plugin for the length of a block."""
    manager = plugins.manager()
    manager.register(plugin)
    try:
        yield
    finally:
        manager.unregister(plugin)


def module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> EntryPoint:
    """Write somebody else's plugin; return the entry point that names it."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)  # another test's of that name
    (folder / f"{name}.py").write_text(text)
    return EntryPoint(name=name, value=name, group=GROUP)


GOOD = """
from yolo_xpu_trainer import hookimpl
from yolo_xpu_trainer.run import Precision

@hookimpl
def xpu_precision(requested):
    return Precision("fp32", "theirs", requested=True)
"""
