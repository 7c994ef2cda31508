"""A row says what is changed in somebody else's module and why; rows act for the length of a `with` block."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ..run import Run

__all__ = ["Row", "activated"]

_LOGGER = logging.getLogger("ultralytics")
_warned: set[str] = set()  # a seam that moved is worth one warning a process, not one a run


@dataclass(frozen=True)
class Row:
    """One change to a module that isn't ours.

    Attributes:
        target: What is replaced, "module:name" or "module:Class.name".
        why: What would go wrong without it.
        source: Where that can be read: an upstream issue, or a file.
        needed: Tells, given the run and the original, whether this version needs the change for this run.
        replacement: Makes the replacement from the run and the original.
        everywhere: Whether every Ultralytics module that imported the name gets the replacement (functions are
            imported by name all over Ultralytics), or the target alone.
    """

    target: str
    why: str
    source: str
    needed: Callable[[Run, Any], bool]
    replacement: Callable[[Run, Any], Any]
    everywhere: bool = True


@contextmanager
def activated(rows: Iterable[Row], run: Run) -> Iterator[list[Row]]:
    """Let rows act, and put back what was there before, whatever happens.

    Args:
        rows: The rows; those that this version doesn't need for this run are passed over.
        run: The run that they act for.

    Yields:
        The rows that act.
    """
    acting = []
    with ExitStack() as stack:
        for row in rows:
            found = _find(row.target)
            if found is None:
                if row.target not in _warned:
                    _warned.add(row.target)
                    _LOGGER.warning(
                        f"XPU: {row.target} isn't where it was in the versions of Ultralytics that are known here, and "
                        f"is left alone. It mattered because {row.why}."
                    )
                continue
            owner, name, original = found
            if row.needed(run, original):
                acting.append(row)
                owners = _importers(name, original) if row.everywhere else [owner]
                stack.enter_context(_replaced(owners, name, original, row.replacement(run, original)))
        yield acting


def _find(target: str) -> tuple[Any, str, Any] | None:
    """Return the owner, the name and the object that a target names, or None where there is no such thing."""
    module_name, _, path = target.partition(":")
    *parents, name = path.split(".")
    try:
        module = importlib.import_module(module_name)
        owner = attrgetter(".".join(parents))(module) if parents else module
        return owner, name, getattr(owner, name)
    except (ImportError, AttributeError):
        return None


def _importers(name: str, original: Any) -> list[Any]:
    """Return every loaded Ultralytics module in which the name stands for the original."""
    return [
        module
        for module_name, module in list(sys.modules.items())
        if module_name.partition(".")[0] == "ultralytics" and vars(module).get(name) is original
    ]


@contextmanager
def _replaced(owners: list[Any], name: str, original: Any, replacement: Any) -> Iterator[None]:
    for owner in owners:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner in owners:
            if getattr(owner, name, None) is replacement:  # else somebody else's change came after ours: theirs stays
                setattr(owner, name, original)
