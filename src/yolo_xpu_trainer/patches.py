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
        needed: Tells, given the run (None for the whole process) and the original, whether this version needs it.
        replacement: Makes the replacement from the run (or None) and the original.
        everywhere: Whether every Ultralytics module that imported the name gets the replacement (functions are
            imported by name all over Ultralytics), or the target alone.
        after: A module that `needed` looks at, and which must be imported to its end before.
        optional: Whether some version that is known has no such target; then nobody is warned.
    """

    target: str
    why: str
    source: str
    needed: Callable[[Any, Any], bool]
    replacement: Callable[[Any, Any], Any]
    everywhere: bool = True
    optional: bool = False
    after: str = ""

    @property
    def module(self) -> str:
        """The module that the target is in."""
        return self.target.partition(":")[0]

    def apply(self, run: Run | None) -> Callable[[], None] | None:
        """Make the change, where this version needs it.

        Args:
            run: The run that it is made for, or None for the whole process.

        Returns:
            What takes it back, or None where it isn't needed.

        Raises:
            LookupError: The target isn't there.
        """
        owner, name, original = self._find()
        if not self.needed(run, original):
            return None
        replacement = self.replacement(run, original)
        inherited = isinstance(owner, type) and name not in vars(owner)
        held = vars(owner).get(name)  # for a static method not what one gets from it
        if isinstance(held, staticmethod):
            replacement = staticmethod(replacement)
        for holder in _holders(name, original) if self.everywhere else [owner]:
            setattr(holder, name, replacement)

        def restore() -> None:
            # Modules imported in the meantime hold the replacement too. Where somebody else's change came after ours,
            # theirs stays.
            for holder in _holders(name, replacement) if self.everywhere else [owner]:
                if inherited:
                    delattr(holder, name)
                elif vars(holder).get(name) is replacement:
                    setattr(holder, name, held)

        return restore

    def _find(self) -> tuple[Any, str, Any]:
        """Return the target's owner, its name there, and the object itself."""
        *parents, name = self.target.partition(":")[2].split(".")
        try:
            module = importlib.import_module(self.module)
            owner = attrgetter(".".join(parents))(module) if parents else module
            return owner, name, getattr(owner, name)
        except (ImportError, AttributeError) as error:
            raise LookupError(self.target) from error

    def warn_that_it_moved(self) -> None:
        """Say, once a process, that this version has no such target, and why that may matter."""
        if self.target not in _warned:
            _warned.add(self.target)
            _LOGGER.warning(
                f"XPU: {self.target} isn't where it was in the versions of Ultralytics that are known here, and is "
                f"left alone. It mattered because {self.why}."
            )


@contextmanager
def activated(rows: Iterable[Row], run: Run | None) -> Iterator[list[Row]]:
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
            try:
                restore = row.apply(run)
            except LookupError:
                if not row.optional:
                    row.warn_that_it_moved()
                continue
            if restore is not None:
                stack.callback(restore)
                acting.append(row)
        yield acting


def _holders(name: str, value: Any) -> list[Any]:
    """Return every loaded Ultralytics module in which the name stands for the value."""
    return [
        module
        for module_name, module in list(sys.modules.items())
        if module_name.partition(".")[0] == "ultralytics" and vars(module).get(name) is value
    ]
