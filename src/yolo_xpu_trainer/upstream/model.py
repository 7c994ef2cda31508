"""The methods of `YOLO` take the `xpu_*` options, and train with a trainer by name, or with ours by themselves."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch

from .. import devices
from ..errors import UnknownTrainerError
from ..options import Options
from ..patches import Patch, applied, patch
from ..plugins import declared_options, hooks, manager
from .child_processes import trainings_patch

__all__ = ["PATCHES", "TRAINER_VARIABLE", "trainers_for"]

TRAINER_VARIABLE = "YOLO_XPU_TRAINER"
_LOGGER = logging.getLogger("ultralytics")
_MODEL = "ultralytics.engine.model:Model"


def trainers_for(upstream: type) -> dict[str, type]:
    """Return the registered trainers that can stand for one of Ultralytics', by the names that users give."""
    found: dict[str, type] = {}
    # The plugin that was registered last is heard last, and wins.
    for plugin in hooks().implementations("xpu_trainers"):
        try:
            found.update(plugin.function(*(upstream for _ in plugin.argnames)))
        except Exception as error:
            _LOGGER.warning(f"XPU: the trainers of plugin {plugin.plugin_name!r} are ignored: {error!r}")
    return found


def named_trainer(name: str, upstream: type) -> type:
    """Return the trainer that a user named.

    Raises:
        UnknownTrainerError: No plugin registers that name for this task.
    """
    found = trainers_for(upstream)
    if name not in found:
        raise UnknownTrainerError(
            f"trainer={name!r} is not registered for this model, whose trainer in Ultralytics is {upstream.__name__}. "
            f"Registered: {', '.join(sorted(found)) or 'none'}. `yolo-xpu plugins` lists the plugins.",
            name=name,
            known=sorted(found),
        )
    return found[name]


@patch(f"{_MODEL}._smart_load", why="plain `train()` on an XPU would go without this package's policies")
def smart_load(original: Callable[..., Any], self: Any, key: str) -> Any:
    """Return what Ultralytics would use, or our trainer for it where there is an XPU to train on."""
    found = original(self, key)
    if key != "trainer" or not isinstance(found, type) or not devices.may_be_any():
        return found
    ours = trainers_for(found).get("xpu")
    return functools.partial(_made_automatically, ours, dict(Options.in_scope())) if ours else found


@patch(f"{_MODEL}.train", why="it takes no trainer by name, and passes unknown options to trainers that refuse them")
def train(original: Callable[..., Any], self: Any, trainer: Any = None, **kwargs: Any) -> Any:
    """Train, with a trainer that may be named, and with the `xpu_*` options."""
    given = Options.pop_from(kwargs, declared_options())
    if trainer is None:
        trainer = os.environ.get(TRAINER_VARIABLE) or None
    # Not nested: a training in a callback of another one has options of its own.
    with Options.scope(given, nested=False):
        if isinstance(trainer, str) and trainer:
            upstream = self._smart_load("trainer")
            upstream = upstream.args[0] if isinstance(upstream, functools.partial) else upstream
            trainer = named_trainer(trainer, _upstream_of(upstream))
        if trainer is None:
            patches = []
            if isinstance(kwargs.get("data"), (list, tuple)):  # for which there may be a `yolo` command each
                patches = [trainings_patch("ultralytics.engine.trainer", Options.environment_of(given))]
            with applied(patches, None):
                return original(self, None, **kwargs)
    if _takes_options(trainer):
        kwargs.update({f"xpu_{name}": value for name, value in given.items()})
    else:
        _say_what_is_absent(trainer, kwargs.get("device", self.overrides.get("device")), given)
    with Options.scope({}, nested=False):
        return original(self, trainer, **kwargs)


def _made_automatically(trainer: Any, given: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Make a trainer that nobody named, whatever its constructor takes: it prefers a CUDA device to an XPU."""
    made = trainer.__new__(trainer)
    made.automatic, made.given = True, given
    made.__init__(*args, **kwargs)
    return made


def _upstream_of(trainer: type) -> type:
    """Return the Ultralytics trainer that one of ours extends."""
    return next(c for c in trainer.__mro__ if c.__module__.partition(".")[0] == "ultralytics")


def _takes_options(trainer: Any) -> bool:
    return isinstance(trainer, type) and getattr(trainer, "takes_xpu_options", False)


def _say_what_is_absent(trainer: Any, device: Any, given: Mapping[str, Any]) -> None:
    """Say, where a trainer that isn't ours is about to run on an XPU, what it goes without."""
    if given:
        _LOGGER.warning(
            f"XPU: {', '.join(f'xpu_{k}' for k in given)} has no effect on a trainer that isn't an XPUTrainer."
        )
    if devices.resolve(device, prefer_xpu=False) is None:
        return
    policies = ", ".join(sorted(name for name, _ in manager().list_name_plugin()))
    name = getattr(trainer, "__name__", str(trainer))
    _LOGGER.warning(
        f"XPU: {name} trains on the XPU without the policies of yolo-xpu-trainer ({policies}). "
        f"`class {name}(XPUTrainer, …)` adds them."
    )


@patch(f"{_MODEL}.to", why="where the XPU named isn't there, PyTorch says neither why nor what to do")
def to(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Move the model; an XPU that it is moved to must be there."""
    device = kwargs.get("device", args[0] if args else None)
    if isinstance(device, (str, torch.device)) and str(device).startswith("xpu"):
        devices.resolve(device, prefer_xpu=True)
    return original(self, *args, **kwargs)


@patch(f"{_MODEL}.xpu", why="where there is no XPU, PyTorch says neither why nor what to do")
def xpu(original: Callable[..., Any], self: Any, device: Any = None) -> Any:
    """Move the model to an XPU, which must be there."""
    devices.resolve(torch.device("xpu", device) if isinstance(device, int) else device or "xpu", prefer_xpu=True)
    return original(self, device)


def _takes_no_options(original: Callable[..., Any]) -> bool:
    return not any(p.startswith("xpu_") for p in inspect.signature(original).parameters)


def _taking_options(method: str) -> Patch:
    @patch(
        f"{_MODEL}.{method}",
        why="it refuses every argument that isn't in Ultralytics' own configuration",
        source="ultralytics/cfg/__init__.py, get_cfg",
        needed=_takes_no_options,
    )
    def taking(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        """Take the `xpu_*` options before Ultralytics sees them."""
        with Options.scope(Options.pop_from(kwargs, declared_options())):
            result = original(self, *args, **kwargs)
            return _in_scope(result, Options.in_scope()) if isinstance(result, Generator) else result

    return taking


def _in_scope(results: Generator[Any, None, Any], options: Mapping[str, Any]) -> Generator[Any, None, None]:
    """Go through the results of `stream=True`, with the options in scope in each step, and not between them."""
    try:
        while True:
            with Options.scope(options):
                try:
                    result = next(results)
                except StopIteration:
                    return
            yield result
    finally:
        with Options.scope(options):
            results.close()


PATCHES = [
    smart_load,
    train,
    to,
    xpu,
    *(_taking_options(method) for method in ("val", "predict", "track", "export", "benchmark")),
]
