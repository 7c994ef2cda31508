"""Whether a model's loss is Ultralytics' own, in all that it is computed by."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from .own_code import is_known, own_code
from .run import Run, StashKey

__all__ = ["is_ultralytics"]

_KNOWN = StashKey[WeakIdKeyDictionary]()
"""Whether all of a model's criterion is Ultralytics'."""


def is_ultralytics(run: Run, model: torch.nn.Module) -> bool:
    """Whether nothing of users' code takes part in a model's loss; `False` in a run's first batch, which makes it.

    Args:
        run: The run, which notes the answer.
        model: An Ultralytics model.
    """
    criterion = getattr(model, "criterion", None)
    if criterion is None:
        return False
    if _KNOWN not in run.stash:
        run.stash[_KNOWN] = WeakIdKeyDictionary()
    if criterion not in run.stash[_KNOWN]:
        kind: Any = type(model)
        methods = [getattr(kind, name, None) for name in ("forward", "loss")]
        of_users = any(vars(model).get(name) for name in ("forward", "loss", "_forward_pre_hooks", "_forward_hooks"))
        run.stash[_KNOWN][criterion] = not of_users and all(map(is_known, methods)) and _is_known_throughout(criterion)
    return bool(run.stash[_KNOWN][criterion])


def _is_python(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in sys.stdlib_module_names


def _is_known_throughout(thing: Any, depth: int = 3) -> bool:
    """Whether an object, its methods, and what it holds are Ultralytics' or PyTorch's."""
    if isinstance(thing, torch.Tensor) or not hasattr(thing, "__dict__") or _is_python(type(thing)):
        return True
    methods = [m for owner in type(thing).__mro__ for m in vars(owner).values() if inspect.isfunction(m)]
    if not is_known(type(thing)) or not all(map(is_known, methods)):
        return False
    if isinstance(thing, torch.nn.Module) and own_code(thing):
        return False
    held = [value for value in vars(thing).values() if depth and value is not thing]
    return all(is_known(v) if inspect.isroutine(v) else _is_known_throughout(v, depth - 1) for v in held)
