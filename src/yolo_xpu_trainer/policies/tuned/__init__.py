"""A run takes what `yolo-xpu autotune` found to be faster here, unless the user says otherwise.

Nobody has published which switches help on which Intel GPU, so the user's own is asked. What was given explicitly, as a
keyword, on a command line or in the environment, comes first.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ...errors import OptionValueError
from ...hookspecs import hookimpl
from ...numerics import ANOTHER_PRECISION, SELF_CHECK, examine
from ...options import Option
from ...plugins import declared_options
from ...run import Run, StashKey
from .choices import Choice, any_for, family, find, place

__all__ = ["ARGUMENTS", "TUNED"]

_LOGGER = logging.getLogger("ultralytics")

TUNED = Option("tuned", True, "a training takes what `yolo-xpu autotune` found to be faster on this GPU")

ARGUMENTS: Mapping[str, type] = {"deterministic": bool, "workers": int, "compile": bool}
"""Ultralytics' own arguments that may be chosen: with none of them another model is trained."""

_KEY = "tuned"  # of a checkpoint
_OPTIONS: StashKey[dict[str, Any]] = StashKey()


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [TUNED]


@hookimpl(tryfirst=True)
def xpu_configure(trainer: Any) -> None:
    """Take what was chosen, before other policies read their options.

    A run on several GPUs, which wasn't measured, takes nothing. One that is resumed goes on with what it had.
    """
    run: Run = trainer.xpu
    if not run.options[TUNED] or run.world_size > 1:
        return
    if getattr(trainer, "resume", False):
        _take_options(run, _resumed(run))
        return
    if not any_for(run.device):
        return
    here = place(run.device, family(getattr(trainer.args, "model", None), str(getattr(trainer.args, "task", ""))))
    choice, stale = find(here)
    if choice is None and stale:
        _LOGGER.info(
            f"XPU: what `yolo-xpu autotune` chose for {here.family} is not taken, because it was measured with "
            f"{stale}. Run it again, or set {TUNED.key}=False to hide this line."
        )
    elif choice is not None and (taken := _take(trainer, choice)):
        _LOGGER.info(
            f"XPU: taking {', '.join(taken)}, as chosen by `yolo-xpu autotune` on {choice.date} "
            f"({choice.gain:+.0%} with {choice.measured}); {TUNED.key}=False takes the defaults."
        )


@hookimpl
def xpu_checkpoint(trainer: Any) -> dict[str, Any]:
    """Remember the options, and the device on which they were chosen: the arguments are Ultralytics' to remember."""
    run: Run = trainer.xpu
    taken: dict[str, Any] = run.stash.get(_OPTIONS, {})
    return {_KEY: {"device": place(run.device, "").device, "options": taken}} if taken else {}


def _resumed(run: Run) -> Mapping[str, Any]:
    saved = run.resumed.get(_KEY, {})
    options = saved.get("options")
    is_here = saved.get("device") == place(run.device, "").device
    return options if is_here and isinstance(options, Mapping) else {}


def _take(trainer: Any, choice: Choice) -> list[str]:
    """Take what the user doesn't say otherwise; return it in words."""
    run: Run = trainer.xpu
    explicit = run.arguments
    options = _take_options(run, choice.options)
    taken = [f"xpu_{name}={value}" for name, value in options.items()]
    for name, value in choice.arguments.items():
        if (
            type(value) is ARGUMENTS.get(name)
            and name not in explicit
            and isinstance(value, int)
            and value >= 0
            and hasattr(trainer.args, name)  # there is no `compile` before 8.3.200 or so
            and not (name == "deterministic" and run.options.as_dict().get("exact_resume"))
        ):
            setattr(trainer.args, name, value)
            taken.append(f"{name}={value}")
    mixed = ("bf16", "fp16")
    if choice.precision in mixed and run.precision.name in mixed and not run.precision.requested:
        if choice.precision != run.precision.name and _is_wrong(run, choice.precision):
            return taken
        if choice.precision != run.precision.name:
            faster: Any = choice.precision
            run.precision = replace(run.precision, name=faster, reason="`yolo-xpu autotune` found it to be faster")
        taken.append(choice.precision)
    return taken


def _is_wrong(run: Run, precision: str) -> bool:
    """Whether the self-check finds that the device computes something wrongly in a precision."""
    if SELF_CHECK.current() is False:
        return False
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    every = itertools.chain.from_iterable(run.hooks.xpu_numerics())
    checks = [each for each in every if each.dtype is dtype and each.instead == ANOTHER_PRECISION]
    return any(not found.right for found in examine(checks, run.device))


def _take_options(run: Run, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Take values of options that may be chosen among, and that nobody gave; return them by option name."""
    taken = {}
    for option in declared_options():
        is_explicit = option.name in run.arguments or run.options.is_given(option)  # Ultralytics has a `channels_last`
        if option.name in chosen and option.tried and not is_explicit:
            with contextlib.suppress(OptionValueError):  # of another version
                taken[option.name] = option.parse(chosen[option.name])
    if taken:
        run.stash[_OPTIONS] = taken
        run.options = run.options.tuned(taken)
    return taken
