"""The `xpu_*` options of a run: from keywords, from `YOLO_XPU_*` in the environment, and back into a child's."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import Field, asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

from .errors import OptionValueError, UnknownOptionError

__all__ = ["Options"]

_PREFIX, _ENV_PREFIX = "xpu_", "YOLO_XPU_"
# What the call of Ultralytics at hand was given, by field name, for what it makes in its course.
_asked: ContextVar[Mapping[str, Any]] = ContextVar("asked", default=MappingProxyType({}))
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


@dataclass(frozen=True)
class Options:
    """What a user can ask of this package beyond Ultralytics' own arguments.

    Each field is given as `xpu_<field>=…` to `train()`, or as `YOLO_XPU_<FIELD>` in the environment, which serves as
    the default.

    Attributes:
        channels_last: Whether convolutions work in channels_last (NHWC), in training, validation and prediction.
            Ultralytics' own `channels_last=False`, where it has that argument, switches it off as well. Default True.
        fused_optimizer: Whether Adam, AdamW and SGD update all weights in one kernel where the device has one that
            agrees with the CPU's. Default True.
        fewer_waits: Whether anchors and constants are kept, targets counted on the host, and the foreground found once
            a step, instead of asking the device for them. The losses are the same, bit for bit. Default True.
        host_counters: Whether batch normalisation counts its batches on the host. Default True.
        host_metrics: Whether validation's metrics are reckoned on the host, from one copy a batch. Default True.
        host_save: Whether a checkpoint is written from copies on the host, made at once. Default True.
        fast_nms: Whether non-maximum suppression is torchvision's, not Ultralytics' loop in Python. Default True.
        pin_memory: Whether batches are loaded into pinned host memory, which the device can read by itself. Ultralytics
            does so for an XPU since 8.4.111. Default True.
        non_blocking: Whether batches are copied to the device while the host goes on. Ultralytics does so for an XPU
            since 8.4.111; some integrated GPUs were found slower with it (ComfyUI#9322). Default True.
        log_every: How old, in seconds, the losses in the progress line may be; the host waits for the device when it
            reads them. 0 reads them with every batch, as Ultralytics does. An epoch's last are exact. Default 0.5.
        prefetch: How many training batches are copied to the device ahead of their steps. 0 copies each in its own
            step, as Ultralytics does, and so do `workers=0` and torch before 2.6. Default 1.
        tf32: Whether float32 convolutions and matrix products may be computed in tf32, faster, and with 10 bits of
            fraction rather than 23. In a bf16 or fp16 run this touches only what autocast leaves in float32. Default
            False: what is float32 is IEEE float32, whatever the process had set.
    """

    channels_last: bool = True
    fused_optimizer: bool = True
    fewer_waits: bool = True
    host_counters: bool = True
    host_metrics: bool = True
    host_save: bool = True
    fast_nms: bool = True
    pin_memory: bool = True
    non_blocking: bool = True
    log_every: float = 0.5
    prefetch: int = 1
    tf32: bool = False

    @classmethod
    def names(cls) -> list[str]:
        """Return the options' names as a user writes them, `xpu_` in front."""
        return [_PREFIX + f.name for f in fields(cls)]

    @classmethod
    def take(cls, overrides: MutableMapping[str, Any]) -> dict[str, Any]:
        """Take every `xpu_*` key out of a run's arguments, so that Ultralytics never sees them.

        Returns:
            What was given, by field name.

        Raises:
            UnknownOptionError: No option has that name.
            OptionValueError: The value is none that the option takes.
        """
        given = {k: overrides.pop(k) for k in [k for k in overrides if k.startswith(_PREFIX)]}
        for key, value in given.items():
            if key not in cls.names():
                near = difflib.get_close_matches(key.lower(), cls.names(), n=3, cutoff=0.5)
                raise UnknownOptionError(
                    f"There is no option {key!r}. "
                    + (f"Did you mean {' or '.join(near)}?" if near else f"The options are {', '.join(cls.names())}."),
                    name=key,
                    value=value,
                    suggestions=near,
                )
        known = {_PREFIX + f.name: f for f in fields(cls)}
        return {known[k].name: _parse(known[k], k, v) for k, v in given.items()}

    @classmethod
    def build(cls, given: Mapping[str, Any], saved: Mapping[str, Any]) -> Options:
        """Combine what was given as keywords, the environment and a resumed run's options, in this order.

        Raises:
            OptionValueError: A variable in the environment holds a value that the option can't take.
        """
        chosen: dict[str, Any] = {}
        for field in fields(cls):
            variable = _ENV_PREFIX + field.name.upper()
            if field.name in given:
                chosen[field.name] = given[field.name]
            elif variable in os.environ:
                chosen[field.name] = _parse(field, variable, os.environ[variable])
            elif field.name in saved:
                chosen[field.name] = saved[field.name]
        return cls(**chosen)

    @classmethod
    @contextmanager
    def asked(cls, given: Mapping[str, Any]) -> Iterator[None]:
        """Remember what a call was given, by field name, until it returns."""
        token = _asked.set(given)
        try:
            yield
        finally:
            _asked.reset(token)

    @classmethod
    def given(cls) -> Mapping[str, Any]:
        """Return what the call at hand was given, by field name."""
        return _asked.get()

    @classmethod
    def current(cls) -> Options:
        """Return the options of the call at hand: what it was given, else the environment's, else the defaults."""
        return cls.build(_asked.get(), {})

    def as_dict(self) -> dict[str, Any]:
        """Return the options by field name, as values of built-in types."""
        return asdict(self)

    def environment(self) -> dict[str, str]:
        """Return the environment variables that give a child process these options."""
        return self.environment_of(self.as_dict())

    @staticmethod
    def environment_of(given: Mapping[str, Any]) -> dict[str, str]:
        """Return the environment variables that give a child process some options, by field name."""
        return {
            _ENV_PREFIX + k.upper(): str(float(v)) if isinstance(v, float) else str(int(v)) for k, v in given.items()
        }


def _parse(option: Field[Any], name: str, value: object) -> Any:
    """Read an option's value, whether given as what it is or as a word."""
    text = str(value).strip().lower()
    if isinstance(option.default, bool):  # which is an int, too
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise OptionValueError(
            f"{name}={value!r} is neither true nor false. Use True or False.", name=name, value=value
        )
    if isinstance(option.default, int):
        if text.isascii() and text.isdigit():
            return int(text)
        raise OptionValueError(f"{name}={value!r} is no whole number from 0 on.", name=name, value=value)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise OptionValueError(f"{name}={value!r} is no number from 0 on.", name=name, value=value)
    return number
