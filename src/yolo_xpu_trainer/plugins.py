"""The plugin manager: finds the built-in policies in `policies/` and other packages' plugins by their entry points."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import pkgutil
import re
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import entry_points
from typing import Any

import pluggy

from . import hookspecs
from .options import RESERVED_NAMES, Option, nearest, unknown_variables
from .ranks import launched
from .recovery import STRICT, Recovery

__all__ = ["PLUGINS", "Hooks", "built_in", "check_environment", "declared_options", "hooks", "is_blocked", "manager"]

PLUGINS = Option(
    "plugins",
    "*",
    "which plugins are asked: `-nms` blocks one, built-in or not; `a,b` allows only these of other packages' plugins, "
    '`""` none of them',
    modes="all",
)
_reported: set[str] = set()  # variables that nobody reads are worth one warning a process
_LOGGER = logging.getLogger("ultralytics")  # what happens in a run goes where Ultralytics reports it


@functools.cache
def manager() -> pluggy.PluginManager:
    """Return this process's plugin manager, made and filled on the first call.

    The built-in policies are registered first, so that others, registered later, are asked before them. A plugin that
    can't be loaded is named in a warning and left out: a stranger's plugin never costs a run. `YOLO_XPU_PLUGINS` in the
    environment says which of the others are loaded at all.
    """
    pm = pluggy.PluginManager(hookspecs.PROJECT)
    pm.add_hookspecs(hookspecs)
    for name in built_in():
        pm.register(importlib.import_module(f"{__package__}.policies.{name}"), name=name)
    # Not by `PLUGINS.current()`: one run's option must not decide what the others find.
    allowed, refused = _read(os.environ.get(PLUGINS.variable, PLUGINS.default))
    for entry in sorted(entry_points(group=hookspecs.PROJECT), key=lambda e: e.name):
        if (allowed is None or entry.name in allowed) and entry.name not in refused:
            _register(pm, entry.name, entry.value, entry.load)
    _declared(pm)  # and leave out those whose options can't be taken
    return pm


def _register(pm: pluggy.PluginManager, name: str, value: str, load: Callable[[], Any]) -> None:
    try:
        pm.register(load(), name=name)
        pm.check_pending()  # a function that is marked as a hook of ours, and isn't one
    except (Exception, SystemExit) as error:
        if pm.has_plugin(name):
            pm.unregister(name=name)
        _LOGGER.warning(f"XPU: plugin {name!r} ({value}) is disabled: loading it failed: {error!r}")


@functools.cache
def built_in() -> tuple[str, ...]:
    """Return the names of the built-in policies: the modules of `policies/`."""
    policies = importlib.import_module(f"{__package__}.policies")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(policies.__path__)))


def declared_options() -> list[Option[Any]]:
    """Return every `xpu_*` option: those of the policies, of other plugins, `xpu_plugins` and `xpu_strict`."""
    return [*_declared(manager()), PLUGINS, STRICT]


def check_environment() -> None:
    """Read what the environment says of a call that is about to run on an XPU, before any data is loaded.

    Variables that nobody reads are named in a warning each, once a process; a DDP worker leaves that to its parent.

    Raises:
        OptionValueError: An option that acts in every mode has an invalid value.
    """
    declared = declared_options()
    if "LOCAL_RANK" not in os.environ or ((launch := launched()) is not None and launch.rank == 0):
        for variable, near in unknown_variables(declared).items():
            if variable not in _reported:
                _reported.add(variable)
                hint = f"Did you mean {' or '.join(near)}?" if near else "`yolo-xpu options` lists the options."
                _LOGGER.warning(f"XPU: {variable} is set, but has no effect: there is no such variable. {hint}")
    for option in declared:
        if option.modes == "all":
            option.current()
    hooks()  # names that `xpu_plugins` gives and nothing has


def _declared(pm: pluggy.PluginManager) -> list[Option[Any]]:
    """Return the options of every plugin, the built-in ones' first; one whose options can't be taken is disabled."""
    found: dict[str, Option[Any]] = {}
    declaring = pm.hook.xpu_options.get_hookimpls()
    for plugin in sorted(declaring, key=lambda implementation: implementation.plugin_name not in built_in()):
        try:
            options = _checked(plugin.function(), found)
        except (Exception, SystemExit) as error:
            pm.unregister(name=plugin.plugin_name)
            _LOGGER.warning(
                f"XPU: plugin {plugin.plugin_name!r} is disabled: its hook xpu_options failed: "
                f"{type(error).__name__}: {error}"
            )
        else:
            found.update(options)
    return list(found.values())


def _checked(declared: Any, taken: Collection[str]) -> dict[str, Option[Any]]:
    """Return a plugin's options by name.

    Raises:
        TypeError: It isn't a list of options.
        ValueError: A name can't be had.
    """
    found: dict[str, Option[Any]] = {}
    for option in [] if declared is None else list(declared):
        if not isinstance(option, Option) or type(option.default) not in (bool, int, float, str):
            raise TypeError(f"{option!r} is not an Option whose default is a bool, int, float or str")
        if not re.fullmatch("[a-z][a-z0-9_]*", option.name):
            raise ValueError(f"the option name {option.name!r} must consist of lower-case letters, digits and _")
        if option.name in RESERVED_NAMES:
            raise ValueError(f"{option.key} can't be declared: {option.variable} has a meaning of its own")
        if option.name in taken or option.name in found:
            raise ValueError(f"{option.key} is declared already")
        found[option.name] = option
    return found


class Hooks:
    """The hooks as a run asks them: without the plugins that it blocks, and again without a policy that fails.

    Args:
        pm: The plugin manager.
        blocked: Names of plugins that aren't asked.
        recovery: Decides what happens where a policy fails; by default its error is raised.
    """

    def __init__(self, pm: pluggy.PluginManager, blocked: frozenset[str], recovery: Recovery | None = None) -> None:
        self._pm = pm
        self._blocked = blocked
        self._recovery = recovery
        self._callers: dict[tuple[str, frozenset[str]], pluggy.HookCaller] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("xpu_"):
            raise AttributeError(name)
        asked = functools.partial(self._ask, name)
        setattr(self, name, asked)
        return asked

    def implementations(self, name: str) -> list[Any]:
        """Return who is asked by a hook, the last one first."""
        return self._caller(name).get_hookimpls()

    def _ask(self, name: str, **kwargs: Any) -> Any:
        recovery, caller = self._recovery, self._caller(name)
        if recovery is None or recovery.trusts(name):
            return caller(**kwargs)
        if _is_asked_as_a_whole(caller):
            answer = recovery.repeating(lambda: self._caller(name)(**kwargs))
        else:
            answer = []
            for one in reversed(caller.get_hookimpls()):
                given = [kwargs[argument] for argument in one.argnames]
                result = recovery.attempting(functools.partial(one.function, *given))
                answer += [] if result is None else [result]
        recovery.trust(name)
        return answer

    def _caller(self, name: str) -> pluggy.HookCaller:
        blocked = self._blocked | (self._recovery.off if self._recovery else frozenset())
        if (name, blocked) not in self._callers:
            plugins = [self._pm.get_plugin(plugin) for plugin in blocked if self._pm.has_plugin(plugin)]
            self._callers[name, blocked] = self._pm.subset_hook_caller(name, plugins)
        return self._callers[name, blocked]


def _is_asked_as_a_whole(caller: pluggy.HookCaller) -> bool:
    """Whether the first answer of a hook counts, or some plugin wraps the others' answers."""
    first = bool(caller.spec and caller.spec.opts.get("firstresult"))
    return first or any(one.wrapper or one.hookwrapper for one in caller.get_hookimpls())


def hooks(spec: str | None = None, recovery: Recovery | None = None) -> Hooks:
    """Return the hooks without the blocked plugins.

    Args:
        spec: The value of `xpu_plugins`; by default that of the call in progress.
        recovery: Decides what happens where a policy fails; by default its error is raised.
    """
    pm, spec = manager(), PLUGINS.current() if spec is None else spec
    return _hooks(pm, spec) if recovery is None else Hooks(pm, _blocked(pm, spec), recovery)


def is_blocked(name: str) -> bool:
    """Whether `xpu_plugins` of the call in progress, or of the environment, blocks a built-in policy.

    Asked wherever Ultralytics is patched, on any device: so no plugin is loaded to answer it.
    """
    return name in _read(PLUGINS.current())[1]


@functools.cache
def _hooks(pm: pluggy.PluginManager, spec: str) -> Hooks:
    return Hooks(pm, _blocked(pm, spec))


@functools.cache
def _blocked(pm: pluggy.PluginManager, spec: str) -> frozenset[str]:
    """Return the names of the plugins that a value of `xpu_plugins` blocks, and warn of names that don't exist."""
    allowed, refused = _read(spec)
    loaded = {name for name, _ in pm.list_name_plugin()}
    installed = loaded | {entry.name for entry in entry_points(group=hookspecs.PROJECT)}
    for name in sorted(((allowed or frozenset()) - loaded) | (refused - installed)):
        near = nearest(name, loaded)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        _LOGGER.warning(
            f"XPU: {PLUGINS.key}={spec!r} names {name!r}, which is not loaded.{hint} `yolo-xpu plugins` lists them."
        )
    others = loaded - set(built_in())
    return refused | (others - allowed if allowed is not None else frozenset())


@functools.cache
def _read(spec: str) -> tuple[frozenset[str] | None, frozenset[str]]:
    """Return the names that are allowed, None for all, and those that are refused."""
    names = list(_words(spec))
    refused = frozenset(name[1:].strip() for name in names if name.startswith("-"))
    allowed = frozenset(name for name in names if not name.startswith("-"))
    everything = "*" in allowed or (bool(refused) and not allowed)
    return None if everything else allowed, refused


def _words(spec: str) -> Iterator[str]:
    return (word.strip() for word in spec.split(",") if word.strip())
