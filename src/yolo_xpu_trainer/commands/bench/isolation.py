"""What holds around a measurement and is taken back after it."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...upstream import Row, activated
from ...upstream.process import process_rows

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
def quiet() -> Iterator[list[str]]:
    """Keep Ultralytics' log, progress bars and reports to others out, and PyTorch's warnings.

    Within `as_plain` or `as_ours`, not around them: they change some of the same functions.

    Yields:
        What Ultralytics warns of in the meantime, each warning once.
    """
    logger = logging.getLogger("ultralytics")
    before = logger.level, logger.handlers, logger.propagate
    warned: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: _note(record.getMessage(), warned)  # type: ignore[method-assign]
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),  # where progress bars are drawn before 8.3.200 or so
            activated(_ROWS, None),
        ):
            warnings.simplefilter("ignore")
            yield warned
    finally:
        level, logger.handlers, logger.propagate = before
        logger.setLevel(level)


def _note(message: str, warned: list[str]) -> None:
    """Note the first line of a warning, without the terminal's colours, unless it is noted already.

    That images cached in RAM make a training indeterminate doesn't matter for its speed.
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", message).strip().splitlines()
    if lines and lines[0] not in warned and "cache='ram'" not in lines[0]:
        warned.append(lines[0])


def clear(index: int | None) -> None:
    """Free what the last run left behind, on the XPU of that index, too, and begin its memory peaks anew."""
    gc.collect()
    if index is None:
        return
    torch.xpu.empty_cache()
    if hasattr(torch.xpu, "reset_peak_memory_stats"):
        torch.xpu.reset_peak_memory_stats(index)


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its text, which ends early where it is long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(": ".join([type(error).__name__, *lines[:1]]), 200, placeholder=" …")
