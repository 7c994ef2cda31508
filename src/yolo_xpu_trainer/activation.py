"""The patches that hold for the whole process: from the moment that Ultralytics is imported, until taken back."""

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

from . import plugins
from .patches import Patch, TargetMovedError
from .policies import channels_last, compile, metrics, nms, sweep
from .recovery import Recovery
from .upstream import command_line, legacy, memory, model, ray_trials, select_device, tuning

__all__ = ["ProcessPatches", "process_patches"]

_LOGGER = logging.getLogger("ultralytics")

# A fixed tuple: no stranger's plugin is loaded when Ultralytics is imported.
_SOURCES = (
    *(select_device, model, tuning, ray_trials, command_line),
    *(nms, metrics, channels_last, compile, sweep),
    *(memory, legacy),
)

# Modules that every way of importing Ultralytics ends with: by then, what was half imported when PyTorch called us is
# whole. `import ultralytics` imports PyTorch from within `ultralytics.utils`, and before 8.3.200 or so from within
# `ultralytics.engine.model`.
_LATE_MODULES = ("ultralytics.models.yolo.model", "ultralytics.models.rtdetr.model", "ultralytics.engine.trainer")


@dataclass
class ProcessPatches:
    """Patches that are applied as their modules are imported; nothing is imported because of them.

    Attributes:
        patches: The patches.
        active: What takes each active patch back, by target.
        skipped: Why a patch isn't active, by target: "not needed", "not there" (in this version), "moved", or "failed".
    """

    patches: list[Patch]
    active: dict[str, Callable[[], None]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    is_on: bool = False
    _hooked: set[str] = field(default_factory=set)
    _recovery: Recovery = field(default_factory=Recovery)
    _lock: Any = field(default_factory=threading.RLock)

    def apply(self) -> None:
        """Apply every patch whose module is imported, and the others when theirs is."""
        self.is_on = True
        awaited = [name for patch in self.patches for name in (patch.module, patch.after) if name]
        for name in dict.fromkeys([*awaited, *_LATE_MODULES]):
            if name not in self._hooked and not _is_whole(sys.modules.get(name)):
                self._hooked.add(name)
                if name not in sys.modules:  # of a half imported one there is no end to be told of: a later one tells
                    wrapt.register_post_import_hook(self._imported, name)
        self._imported(None)

    def restore(self) -> None:
        """Put back every object that was replaced."""
        with self._lock:
            self.is_on = False
            for restore in reversed(self.active.values()):
                restore()
            self.active.clear()
            self.skipped.clear()

    def state_of(self, patch: Patch) -> str:
        """Return "active", why the patch was skipped, or "waiting" for its module to be imported."""
        return "active" if patch.target in self.active else self.skipped.get(patch.target, "waiting")

    def _imported(self, module: ModuleType | None) -> None:
        """Try the patches that are neither active nor skipped. Nothing may escape: it would break somebody's import."""
        with self._lock:
            for patch in self.patches if self.is_on else []:
                if patch.target in self.active or patch.target in self.skipped:
                    continue
                if all(
                    sys.modules.get(name) is module is not None or _is_whole(sys.modules.get(name))
                    for name in (patch.module, patch.after or patch.module)
                ):
                    self._try(patch)

    def _try(self, patch: Patch) -> None:
        try:
            restore = patch.apply(None, self._guard)
        except TargetMovedError:
            self.skipped[patch.target] = "not there" if patch.optional else "moved"
            if not patch.optional:
                patch.warn_that_it_moved()
        except Exception as error:
            self.skipped[patch.target] = f"failed: {error!r}"
            _LOGGER.warning(f"XPU: {patch.target} is not patched: {error!r}. Consequence: {patch.why}.")
        else:
            if restore is None:
                self.skipped[patch.target] = "not needed"
            else:
                self.active[patch.target] = restore

    def _guard(self, patch: Patch, replacement: Any, original: Any, fallback: Any) -> Any:
        """Return what calls the replacement unless its policy is blocked, and until it fails."""
        if not patch.policy:
            return replacement
        guarded = self._recovery.guard(patch, replacement, original, fallback)

        @functools.wraps(original)
        def unless_blocked(*args: Any, **kwargs: Any) -> Any:
            return (original if plugins.is_blocked(patch.policy) else guarded)(*args, **kwargs)

        return unless_blocked


def _is_whole(module: ModuleType | None) -> bool:
    """Whether a module was imported to its end."""
    return module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False)


@functools.cache
def process_patches() -> ProcessPatches:
    """Return this process's patches, made on the first call."""
    return ProcessPatches([patch for module in _SOURCES for patch in module.PATCHES])
