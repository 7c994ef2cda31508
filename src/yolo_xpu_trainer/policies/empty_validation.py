"""A rank that has no batch of the validation set adds nothing in the final evaluation.

A loader without batches is false, so that Ultralytics takes it for none there and makes another one, of the whole
validation set: each such rank counts every image once more.
"""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl
from ..run import Run

__all__: list[str] = []


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Let a validation loader without batches be true, as an object is that says nothing of it."""
    run: Run = trainer.xpu
    loader = trainer.test_loader
    if run.world_size > 1 and loader is not None and not loader:
        loader.__class__ = type(type(loader).__name__, (type(loader),), {"__bool__": lambda self: True})
