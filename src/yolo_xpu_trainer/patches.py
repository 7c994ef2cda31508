"""Patches of somebody else's module: declared by a decorator, applied for the length of a `with` block, taken back.

::

    @patch("ultralytics.utils.tal:make_anchors", why="rebuilds and copies the same anchors in every step")
    def make_anchors(run, original, feats, strides, grid_cell_offset=0.5): ...

The name then stands for the `Patch`. The function is called in the place of the original, with the original first; with
the run (None where the patch holds for the process) in front of it, if the function's first parameter is named `run`.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import Run

__all__ = ["Patch", "TargetMovedError", "applied", "is_upstream", "like", "patch", "stand_in"]

_LOGGER = logging.getLogger("ultralytics")
_warned: set[str] = set()  # a target that moved is worth one warning a process, not one a run

Wrap = Callable[["Patch", Any, Any, Any], Any]
"""Makes of a patch, its replacement, the original and the fallback what is put in the original's place."""


class TargetMovedError(LookupError):
    """A patch's target isn't there; the message names it."""


@dataclass(frozen=True)
class Patch:
    """One change to a module that isn't ours.

    Attributes:
        target: What is replaced, "module:name" or "module:Class.name".
        why: What goes wrong without it.
        replacement: Makes the replacement from the run (or None) and the original.
        source: Where `why` can be read: an upstream issue, or a file. By default the target's file.
        needed: Tells from the original whether this version of Ultralytics needs the patch. By default it does.
        everywhere: Whether every Ultralytics module that imported the name gets the replacement, or the target alone.
            By default so for functions of a module, which are imported by name all over Ultralytics.
        optional: Whether a known version has no such target; then nobody is warned.
        after: A module that `needed` looks at, which must be imported to its end before.
        policy: Name of the policy whose file declares it; "" outside of `policies`.
        fallback: Makes from the run (or None) and the original what is called once the replacement has failed; by
            default the original is.
    """

    target: str
    why: str
    replacement: Callable[[Any, Any], Any]
    source: str = ""
    needed: Callable[[Any], bool] | None = None
    everywhere: bool | None = None
    optional: bool = False
    after: str = ""
    policy: str = ""
    fallback: Callable[[Any, Any], Any] | None = None

    @property
    def module(self) -> str:
        """The module that the target is in."""
        return self.target.partition(":")[0]

    @property
    def where(self) -> str:
        """The source, or else the target's file."""
        return self.source or self.module.replace(".", "/") + ".py"

    def apply(self, run: Run | None, wrap: Wrap | None = None) -> Callable[[], None] | None:
        """Make the change, if this version needs it.

        Args:
            run: The run that it is made for, or None for the whole process.
            wrap: Makes what is put in the target's place; by default it is the replacement.

        Returns:
            What takes it back, or None where it isn't needed.

        Raises:
            TargetMovedError: The target isn't there.
        """
        owner, name, original = self._find()
        if self.needed is not None and not self.needed(original):
            return None
        held = vars(owner).get(name, _ABSENT)  # of a static method not what one gets from it; absent if inherited
        kind = type(held) if isinstance(held, (staticmethod, classmethod)) else None
        if kind is classmethod:
            original = held.__func__  # which takes the class, that of a subclass too
        replacement = self.replacement(run, original)
        if wrap is not None:
            fallback = self.fallback(run, original) if self.fallback is not None else original
            replacement = wrap(self, replacement, original, fallback)
        if kind is not None:
            replacement = kind(replacement)
        everywhere = self.everywhere
        if everywhere is None:
            everywhere = isinstance(original, FunctionType) and not isinstance(owner, type)
        for holder in _holders(name, original) if everywhere else [owner]:
            setattr(holder, name, replacement)

        def restore() -> None:
            # Modules imported in the meantime hold the replacement too. Where somebody else's change came after ours,
            # theirs stays.
            for holder in _holders(name, replacement) if everywhere else [owner]:
                if vars(holder).get(name) is not replacement:
                    continue
                if held is _ABSENT:
                    delattr(holder, name)
                else:
                    setattr(holder, name, held)

        return restore

    def is_needed(self) -> bool:
        """Whether this version of Ultralytics needs the patch.

        Raises:
            TargetMovedError: The target isn't there.
        """
        original = self._find()[2]
        return self.needed is None or bool(self.needed(original))

    def _find(self) -> tuple[Any, str, Any]:
        """Return the target's owner, its name there, and the object itself; built-ins are found in every module."""
        *parents, name = self.target.partition(":")[2].split(".")
        try:
            module = importlib.import_module(self.module)
            owner = attrgetter(".".join(parents))(module) if parents else module
            if not parents and not hasattr(owner, name) and hasattr(builtins, name):
                return owner, name, getattr(builtins, name)
            return owner, name, getattr(owner, name)
        except (ImportError, AttributeError) as error:
            raise TargetMovedError(self.target) from error

    def warn_that_it_moved(self) -> None:
        """Say, once a process, that this version has no such target, and what follows."""
        if self.target not in _warned:
            _warned.add(self.target)
            from ultralytics import __version__

            _LOGGER.warning(
                f"XPU: {self.target} was not found in Ultralytics {__version__}, so it is not patched. Consequence: "
                f"{self.why}."
            )


_ABSENT = object()


def patch(target: str, *, why: str, **more: Any) -> Callable[[Callable[..., Any]], Patch]:
    """Declare that the decorated function is called in the place of a function or method.

    Args:
        target: What is replaced, "module:name" or "module:Class.name".
        why: What goes wrong without it.
        **more: Further fields of `Patch`.
    """

    def declare(function: Callable[..., Any]) -> Patch:
        takes_run = next(iter(inspect.signature(function).parameters)) == "run"

        def replacement(run: Any, original: Any) -> Any:
            first = (run, original) if takes_run else (original,)

            @functools.wraps(original)
            def replaced(*args: Any, **kwargs: Any) -> Any:
                return function(*first, *args, **kwargs)

            return replaced

        return Patch(target, why, replacement, policy=_policy_of(function), **more)

    return declare


def stand_in(target: str, *, why: str, **more: Any) -> Callable[[Callable[[Any, Any], Any]], Patch]:
    """Declare that the decorated function makes what replaces an object, from the run (or None) and the original.

    Args:
        target: What is replaced, "module:name" or "module:Class.name".
        why: What goes wrong without it.
        **more: Further fields of `Patch`.
    """

    def declare(function: Callable[[Any, Any], Any]) -> Patch:
        return Patch(target, why, function, policy=_policy_of(function), **more)

    return declare


def like(original: Any, **changes: Any) -> Any:
    """Return a stand-in for a module, with some attributes of its own.

    The others are the module's: as they are when they are asked for, those that it makes on first use among them.

    Args:
        original: The module.
        **changes: The stand-in's own attributes.
    """

    class StandIn(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            return changes[name] if name in changes else getattr(original, name)

        def __setattr__(self, name: str, value: Any) -> None:
            changes.pop(name, None)
            setattr(original, name, value)

        def __dir__(self) -> list[str]:
            return sorted({*dir(original), *changes})

    return StandIn(getattr(original, "__name__", "stand_in"))


@contextmanager
def applied(patches: Iterable[Patch], run: Run | None) -> Iterator[list[Patch]]:
    """Apply patches, and put back what was there before, whatever happens.

    Args:
        patches: The patches; those that this version doesn't need are skipped.
        run: The run that they are for, whose `recovery` guards them; or None.

    Yields:
        The active ones.
    """
    active = []
    wrap = run.recovery.guard if run is not None else None
    with ExitStack() as stack:
        for one in patches:
            try:
                restore = one.apply(run, wrap)
            except TargetMovedError:
                if not one.optional:
                    one.warn_that_it_moved()
                continue
            if restore is not None:
                stack.callback(restore)
                active.append(one)
        yield active


def is_upstream(function: Any) -> bool:
    """Whether a function, or a method as its class holds it, is Ultralytics' own, patched by this package or not.

    By the file that it is in: what its class's module says, a method that users put there doesn't change.
    """
    function = getattr(function, "__func__", function)
    if isinstance(function, functools.partial):
        function = function.func
    name = str(getattr(function, "__globals__", {}).get("__name__", "")).partition(".")[0]
    return name in ("ultralytics", __name__.partition(".")[0])


def _policy_of(function: Any) -> str:
    name = str(function.__module__).partition(f"{__name__.partition('.')[0]}.policies.")[2]
    return name.partition(".")[0]


def _holders(name: str, value: Any) -> list[Any]:
    """Return every loaded Ultralytics module in which the name stands for the value."""
    return [
        module
        for module_name, module in list(sys.modules.items())
        if module_name.partition(".")[0] == "ultralytics"
        and isinstance(module, ModuleType)  # None where its import is blocked
        and vars(module).get(name) is value
    ]
