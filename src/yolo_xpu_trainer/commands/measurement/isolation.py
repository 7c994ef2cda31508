"""Contexts of a measurement: with or without this package's changes, without output, with freed memory."""

from __future__ import annotations

import contextlib
import functools
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

from ... import devices
from ...activation import process_patches
from ...patches import Patch, applied

__all__ = ["clear", "first_line", "keep_current_device", "plain_ultralytics", "quiet", "with_package"]


@contextmanager
def _changes(active: bool) -> Iterator[None]:
    """Apply or take back this package's changes to Ultralytics, and restore the former state afterwards."""
    patches = process_patches()
    was_active = patches.is_on
    (patches.apply if active else patches.restore)()
    try:
        yield
    finally:
        if was_active is not active:
            (patches.apply if was_active else patches.restore)()


plain_ultralytics = functools.partial(_changes, False)
with_package = functools.partial(_changes, True)


def _returning(value: object) -> Callable[[None, Any], Callable[..., Any]]:
    return lambda run, original: lambda *args, **kwargs: value


_PATCHES = [
    Patch(
        target="ultralytics.utils.callbacks:add_integration_callbacks",
        why="W&B, MLflow and Ultralytics' own platform would log a measurement as an experiment",
        source="ultralytics/utils/callbacks/base.py",
        replacement=_returning(None),
    ),
    Patch(
        target="ultralytics.utils.checks:check_amp",
        why="it downloads a model, and if it fails, the training runs in fp32",
        source="ultralytics/utils/checks.py",
        replacement=_returning(True),
    ),
]


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Suppress Ultralytics' log, progress bars and reports to other services, and PyTorch's warnings.

    Must be entered within `plain_ultralytics` or `with_package`, because they change some of the same functions.

    Yields:
        The warnings of Ultralytics, each once, added as they are logged.
    """
    logger = logging.getLogger("ultralytics")
    before = logger.level, logger.handlers, logger.propagate
    warned: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: _collect(record.getMessage(), warned)  # type: ignore[method-assign]
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),  # progress bars before 8.3.200 or so
            applied(_PATCHES, None),
        ):
            warnings.simplefilter("ignore")
            yield warned
    finally:
        level, logger.handlers, logger.propagate = before
        logger.setLevel(level)


def _collect(message: str, warned: list[str]) -> None:
    """Add the first line of a warning, without colour codes, unless it is a duplicate.

    The warning that images cached in RAM make a training nondeterministic is left out: it doesn't affect speed.
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", message).strip().splitlines()
    if lines and lines[0] not in warned and "cache='ram'" not in lines[0]:
        warned.append(lines[0])


def clear(index: int | None) -> None:
    """Free the memory of the last run, also on the XPU with that index, and reset its peak memory statistics."""
    gc.collect()
    if index is None:
        return
    devices.empty_cache(index)
    if hasattr(torch.xpu, "reset_peak_memory_stats"):
        torch.xpu.reset_peak_memory_stats(index)


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its text, shortened to 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(": ".join([type(error).__name__, *lines[:1]]), 200, placeholder=" …")


@contextmanager
def keep_current_device() -> Iterator[None]:
    """Restore the current XPU, which Ultralytics sets."""
    if not devices.count():
        yield
        return
    before = torch.xpu.current_device()
    try:
        yield
    finally:
        torch.xpu.set_device(before)
