"""The rows that act for the whole process: from the moment that Ultralytics is imported, until taken back."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import wrapt

from . import cli, compiling, devices, inference, legacy, metrics, model, nms
from .rows import Row

__all__ = ["ProcessRows", "process_rows"]

_LOGGER = logging.getLogger("ultralytics")

# Modules that every way of importing Ultralytics ends with: by then, what was half imported when PyTorch called us is
# whole. `import ultralytics` imports PyTorch from within `ultralytics.utils`, and before 8.3.200 or so from within
# `ultralytics.engine.model`.
_LATE_MODULES = ("ultralytics.models.yolo.model", "ultralytics.models.rtdetr.model", "ultralytics.engine.trainer")


@dataclass
class ProcessRows:
    """A table of rows that act as their modules are imported, and nothing is imported for.

    Attributes:
        rows: The table.
        acting: What takes each acting row back, by target.
        passed: Why a row doesn't act, by target: "not needed", "not there" (in this version) or "moved".
    """

    rows: list[Row]
    acting: dict[str, Callable[[], None]] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)
    active: bool = False
    _hooked: set[str] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.RLock)

    def activate(self) -> None:
        """Let every row act whose module is imported, and the others when theirs is."""
        self.active = True
        awaited = [name for row in self.rows for name in (row.module, row.after) if name]
        for name in dict.fromkeys([*awaited, *_LATE_MODULES]):
            if name not in self._hooked and not _is_whole(sys.modules.get(name)):
                self._hooked.add(name)
                if name not in sys.modules:  # of a half imported one there is no end to be told of: a later one tells
                    wrapt.register_post_import_hook(self._imported, name)
        self._imported(None)

    def deactivate(self) -> None:
        """Put back every object that was replaced."""
        with self._lock:
            self.active = False
            for restore in reversed(self.acting.values()):
                restore()
            self.acting.clear()
            self.passed.clear()

    def _imported(self, module: ModuleType | None) -> None:
        """Try the rows that neither act nor were passed over. Nothing may escape: it would break somebody's import."""
        with self._lock:
            for row in self.rows if self.active else []:
                if row.target in self.acting or row.target in self.passed:
                    continue
                if not all(
                    sys.modules.get(name) is module is not None or _is_whole(sys.modules.get(name))
                    for name in (row.module, row.after or row.module)
                ):
                    continue
                try:
                    restore = row.apply(None)
                except LookupError:
                    self.passed[row.target] = "not there" if row.optional else "moved"
                    if not row.optional:
                        row.warn_that_it_moved()
                except Exception as error:
                    self.passed[row.target] = f"failed: {error!r}"
                    _LOGGER.warning(f"XPU: {row.target} can't be changed and is left alone: {error!r}")
                else:
                    if restore is None:
                        self.passed[row.target] = "not needed"
                    else:
                        self.acting[row.target] = restore


def _is_whole(module: ModuleType | None) -> bool:
    """Whether a module was imported to its end."""
    return module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False)


@functools.cache
def process_rows() -> ProcessRows:
    """Return this process's table of rows, made on the first call."""
    modules = (devices, model, cli, nms, metrics, inference, compiling, legacy)
    return ProcessRows([row for module in modules for row in module.ROWS])
