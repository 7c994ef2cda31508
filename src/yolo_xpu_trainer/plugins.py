"""The plugin manager: what the entry-point group `yolo_xpu_trainer` names, the built-in policies among it."""

from __future__ import annotations

import functools
import logging
from importlib.metadata import EntryPoint, entry_points

import pluggy

from . import hookspecs

__all__ = ["manager"]

_LOGGER = logging.getLogger("ultralytics")  # what happens in a run goes where Ultralytics reports it


@functools.cache
def manager() -> pluggy.PluginManager:
    """Return this process's plugin manager, made and filled on the first call.

    A plugin that can't be loaded is named in a warning and left out: a stranger's plugin never costs a run.
    """
    pm = pluggy.PluginManager(hookspecs.PROJECT)
    pm.add_hookspecs(hookspecs)
    # The built-ins first, so that others, registered later, are asked before them.
    for entry in sorted(entry_points(group=hookspecs.PROJECT), key=lambda e: (not _is_builtin(e), e.name)):
        try:
            pm.register(entry.load(), name=entry.name)
        except Exception as error:
            _LOGGER.warning(f"XPU plugin {entry.name!r} ({entry.value}) is left out, for it can't be loaded: {error!r}")
    pm.check_pending()
    return pm


def _is_builtin(entry: EntryPoint) -> bool:
    return entry.value.startswith(f"{__package__}.")
