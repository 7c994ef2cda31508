"""Rows for `ultralytics.engine.model.Model`: its methods take the `xpu_*` options, and train with our trainers."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from .. import devices
from ..errors import UnknownTrainerError
from ..options import Options
from ..plugins import manager
from ..run import AMP_VARIABLE
from . import subprocesses
from .rows import Row, activated

__all__ = ["ROWS", "TRAINER_VARIABLE"]

TRAINER_VARIABLE = "YOLO_XPU_TRAINER"
_LOGGER = logging.getLogger("ultralytics")


def trainers_for(upstream: type) -> dict[str, type]:
    """Return the registered trainers that can stand for one of Ultralytics', by the names that users give."""
    found: dict[str, type] = {}
    for (
        plugin
    ) in manager().hook.xpu_trainers.get_hookimpls():  # the one that was registered last is heard last, and wins
        try:
            found.update(plugin.function(*(upstream for _ in plugin.argnames)))  # type: ignore[call-overload]
        except Exception as error:
            _LOGGER.warning(f"XPU plugin {plugin.plugin_name!r} can't name its trainers and is passed over: {error!r}")
    return found


def named_trainer(name: str, upstream: type) -> type:
    """Return the trainer that a user named.

    Raises:
        UnknownTrainerError: No plugin registers that name for this task.
    """
    found = trainers_for(upstream)
    if name not in found:
        raise UnknownTrainerError(
            f"trainer={name!r} is no trainer for this model, for which Ultralytics has {upstream.__name__}. "
            f"Registered: {', '.join(sorted(found)) or 'none'}. `yolo-xpu plugins` shows which plugins there are.",
            name=name,
            known=sorted(found),
        )
    return found[name]


def _smart_load(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def smart_load(self: Any, key: str) -> Any:
        """Return what Ultralytics would use, or our trainer for it where there is an XPU to train on."""
        found = original(self, key)
        if key != "trainer" or not isinstance(found, type) or not devices.count():
            return found
        ours = trainers_for(found).get("xpu")
        return functools.partial(_made_automatically, ours, Options.given()) if ours else found

    return smart_load


def _train(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def train(self: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Train, with a trainer that may be named, and with the `xpu_*` options."""
        given = Options.take(kwargs)
        if trainer is None:
            trainer = os.environ.get(TRAINER_VARIABLE) or None
        name = trainer if isinstance(trainer, str) else ""
        if name:
            upstream = self._smart_load("trainer")
            upstream = _upstream_of(upstream.args[0] if isinstance(upstream, functools.partial) else upstream)
            trainer = named_trainer(name, upstream)
        if trainer is None:
            rows = []
            if isinstance(kwargs.get("data"), (list, tuple)):  # for which there may be a `yolo` command each
                rows = [_child("ultralytics.engine.trainer", Options.environment_of(given))]
            with Options.asked(given), activated(rows, None):
                return original(self, None, **kwargs)
        if _takes_options(trainer):
            kwargs.update({f"xpu_{k}": v for k, v in given.items()})
        else:
            _say_what_is_absent(trainer, kwargs.get("device", self.overrides.get("device")), given)
        return original(self, trainer, **kwargs)

    return train


def _made_automatically(trainer: Any, given: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Make a trainer that nobody named, whatever its constructor takes: it prefers no XPU to a CUDA device."""
    made = trainer.__new__(trainer)
    made.automatic, made.given = True, given
    made.__init__(*args, **kwargs)
    return made


def _upstream_of(trainer: type) -> type:
    """Return the Ultralytics trainer that one of ours extends."""
    return next(c for c in trainer.__mro__ if c.__module__.partition(".")[0] == "ultralytics")


def _takes_options(trainer: Any) -> bool:
    from ..trainers import XPUTrainer

    return isinstance(trainer, type) and issubclass(trainer, XPUTrainer)


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
        f"`class {name}(XPUTrainer, …)` brings them."
    )


def _tune(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def tune(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Tune; each iteration is a process, whose environment tells it the trainer, precision and options."""
        environment = Options.environment_of(Options.take(kwargs))
        trainer = kwargs.pop("trainer", None)
        if trainer is not None:
            if not isinstance(trainer, str):
                raise UnknownTrainerError(
                    f"tune(trainer={trainer!r}) can't reach the processes that tuning starts, which run `yolo train`. "
                    "Name a registered trainer, such as trainer='xpu'.",
                    name=str(trainer),
                    known=["xpu"],
                )
            environment[TRAINER_VARIABLE] = trainer
        if str(kwargs.get("amp")).lower() in ("bf16", "fp16", "fp32"):
            environment[AMP_VARIABLE] = str(kwargs.pop("amp")).lower()
        # The tuner starts its processes itself, or since 8.4.90 or so by way of MultiTrainer.
        children = [_child(f"ultralytics.engine.{module}", environment) for module in ("tuner", "trainer")]
        with activated(children, None):
            return original(self, *args, **kwargs)

    return tune


def _child(module: str, environment: dict[str, str]) -> Row:
    return subprocesses.row(module, environment, "its child processes would not know the trainer and options asked for")


def _taking_options(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Take the `xpu_*` options before Ultralytics, which knows none of them, sees them."""
        with Options.asked({**Options.given(), **Options.take(kwargs)}):
            return original(self, *args, **kwargs)

    return method


def _takes_no_options(run: None, original: Callable[..., Any]) -> bool:
    return not any(p.startswith("xpu_") for p in inspect.signature(original).parameters)


_REFUSED = "it refuses every argument that isn't in Ultralytics' own configuration"
_MODEL = "ultralytics.engine.model:Model."
ROWS = [
    Row(
        target=f"{_MODEL}_smart_load",
        why="plain `train()` on an XPU would go without this package's policies",
        source="ultralytics/engine/model.py",
        needed=lambda run, original: True,
        replacement=_smart_load,
        everywhere=False,
    ),
    Row(
        target=f"{_MODEL}train",
        why="it takes no trainer by name, and hands unknown options to trainers that refuse them",
        source="ultralytics/engine/model.py",
        needed=lambda run, original: True,
        replacement=_train,
        everywhere=False,
    ),
    Row(
        target=f"{_MODEL}tune",
        why="the processes that it starts would not know the trainer and options asked for",
        source="ultralytics/engine/tuner.py",
        needed=lambda run, original: True,
        replacement=_tune,
        everywhere=False,
    ),
    *(
        Row(
            target=f"{_MODEL}{mode}",
            why=_REFUSED,
            source="ultralytics/cfg/__init__.py, get_cfg",
            needed=_takes_no_options,
            replacement=_taking_options,
            everywhere=False,
        )
        for mode in ("val", "predict", "track", "export", "benchmark")
    ),
]
