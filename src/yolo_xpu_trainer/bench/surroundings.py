"""What holds around a measurement and is taken back after it."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..upstream import Row, activated
from ..upstream.process import process_rows

__all__ = ["as_ours", "as_plain", "clear", "first_line", "quiet"]


@contextmanager
def as_plain() -> Iterator[None]:
    """Take back everything that this package changed in Ultralytics."""
    rows = process_rows()
    was_active = rows.active
    rows.deactivate()
    try:
        yield
    finally:
        if was_active:
            rows.activate()


@contextmanager
def as_ours() -> Iterator[None]:
    """Let this package change in Ultralytics what it changes, wherever autoloading is switched off, too."""
    rows = process_rows()
    was_active = rows.active
    rows.activate()
    try:
        yield
    finally:
        if not was_active:
            rows.deactivate()


def _returning(value: object) -> Callable[[None, Any], Callable[..., Any]]:
    return lambda run, original: lambda *args, **kwargs: value


_ROWS = [
    Row(
        target="ultralytics.utils.callbacks:add_integration_callbacks",
        why="a measurement is no experiment for W&B, MLflow or Ultralytics' own platform to log",
        source="ultralytics/utils/callbacks/base.py",
        needed=lambda run, original: True,
        replacement=_returning(None),
    ),
    Row(
        target="ultralytics.utils.checks:check_amp",
        why="it downloads a model, and where it fails the figure would be float32's under another name",
        source="ultralytics/utils/checks.py",
        needed=lambda run, original: True,
        replacement=_returning(True),
    ),
]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ultralytics' log, progress bars and reports to others out, and PyTorch's warnings.

    Within `as_plain` or `as_ours`, not around them: they change some of the same functions.
    """
    logger = logging.getLogger("ultralytics")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), activated(_ROWS, None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def clear(index: int | None) -> None:
    """Free what the last run left behind, on the XPU of that index, too, and begin its memory peaks anew."""
    gc.collect()
    if index is None:
        return
    torch.xpu.empty_cache()
    if hasattr(torch.xpu, "reset_peak_memory_stats"):
        torch.xpu.reset_peak_memory_stats(index)


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])
