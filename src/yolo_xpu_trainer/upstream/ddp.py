"""Rows for DDP: worker processes are fresh interpreters that know of a run only what their environment says."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace
from typing import Any

from ..run import Run
from .rows import Row

__all__ = ["ROWS"]


def _with_environment(run: Run, original: Any) -> Any:
    """Return a stand-in for the `subprocess` module that hands the run's decisions to a child's environment only."""

    def launch(*args: Any, **kwargs: Any) -> Any:
        kwargs["env"] = {**os.environ, **(kwargs.get("env") or {}), **run.environment()}
        return subprocess.run(*args, **kwargs)

    return SimpleNamespace(**{**vars(original), "run": launch})


ROWS = [
    Row(
        target="ultralytics.engine.trainer:subprocess",
        why="DDP workers never run the user's script, so they need the run's precision and options from elsewhere",
        source="ultralytics/utils/dist.py, generate_ddp_file",
        needed=lambda run, original: len(run.indices) > 1,
        replacement=_with_environment,
        everywhere=False,
    )
]
