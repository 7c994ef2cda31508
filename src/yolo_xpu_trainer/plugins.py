"""The plugin manager: what the entry-point group `yolo_xpu_trainer` names, our own policies and trainers among it."""

from __future__ import annotations

import functools
import logging
import os
from importlib.metadata import EntryPoint, entry_points

import pluggy

from . import hookspecs

__all__ = ["PLUGINS_VARIABLE", "manager"]

PLUGINS_VARIABLE = "YOLO_XPU_PLUGINS"
_LOGGER = logging.getLogger("ultralytics")  # what happens in a run goes where Ultralytics reports it


@functools.cache
def manager() -> pluggy.PluginManager:
    """Return this process's plugin manager, made and filled on the first call.

    The built-in policies are registered first, so that others, registered later, are asked before them. A plugin that
    can't be loaded is named in a warning and left out: a stranger's plugin never costs a run. `YOLO_XPU_PLUGINS` in the
    environment limits the others to those that it names, with commas between them; "" leaves out all.
    """
    pm = pluggy.PluginManager(hookspecs.PROJECT)
    pm.add_hookspecs(hookspecs)
    allowed = os.environ.get(PLUGINS_VARIABLE)
    names = None if allowed is None else {name.strip() for name in allowed.split(",") if name.strip()}
    for entry in sorted(entry_points(group=hookspecs.PROJECT), key=lambda e: (not _is_builtin(e), e.name)):
        if _is_builtin(entry) or names is None or entry.name in names:
            _register(pm, entry)
    missing = (names or set()) - {name for name, _ in pm.list_name_plugin()}
    if missing:
        _LOGGER.warning(f"XPU: {PLUGINS_VARIABLE} names {', '.join(sorted(missing))}, which was not loaded.")
    return pm


def _register(pm: pluggy.PluginManager, entry: EntryPoint) -> None:
    try:
        plugin = entry.load()
        pm.register(plugin, name=entry.name)
        pm.check_pending()  # a function that is marked as a hook of ours, and isn't one
    except (Exception, SystemExit) as error:
        if pm.has_plugin(entry.name):
            pm.unregister(name=entry.name)
        _LOGGER.warning(f"XPU plugin {entry.name!r} ({entry.value}) is left out, for it can't be loaded: {error!r}")


def _is_builtin(entry: EntryPoint) -> bool:
    return entry.value.startswith(f"{__package__}.")
