"""Tell users' code in a model from PyTorch's, torchvision's and Ultralytics', which works in either memory format."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

__all__ = ["KNOWN", "is_known", "named", "own_code", "says", "source_of", "unwrapped"]

KNOWN = {"torch", "torchvision", "ultralytics", __name__.partition(".")[0]}  # whose code works in either layout


def is_known(thing: Any) -> bool:
    """Whether a class, a function or another callable is PyTorch's, torchvision's, Ultralytics' or ours.

    What a function's `__module__` says, `functools.wraps` changes; its globals are those of the file that it is in.
    """
    if isinstance(thing, functools.partial):
        return is_known(thing.func)
    function = getattr(thing, "__func__", thing)
    if inspect.isfunction(function):
        name = function.__globals__.get("__name__", "")
        inner = getattr(function, "__wrapped__", None)
        return str(name).partition(".")[0] in KNOWN and (inner is None or is_known(inner))
    if inspect.isbuiltin(function):
        return True
    owner = thing if isinstance(thing, type) else type(thing)
    return owner.__module__.partition(".")[0] in KNOWN


def source_of(function: Any) -> str:
    """Return the text of a function, of the innermost of those that are wrapped; "" where a program has none."""
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""


def says(*texts: str) -> Callable[[Any], bool]:
    """Return what tells of a function whether it is a known one, whose text has all of these in it."""
    return lambda function: is_known(function) and all(text in source_of(function) for text in texts)


def own_code(model: torch.nn.Module) -> dict[int, Any]:
    """Return what of a model is users' code: modules, methods put on them or their classes, hooks, a loss; by id."""
    found: dict[int, Any] = {}
    for module in model.modules():
        kind: Any = type(module)
        held = vars(module)
        callables: list[Any] = [
            value for value in held.values() if inspect.isroutine(value) or isinstance(value, functools.partial)
        ]
        callables += [hook for hooks in _hooks(module) for hook in hooks.values()]
        callables.append(held.get("criterion"))
        if is_known(kind):
            callables += [getattr(kind, name, None) for name in ("forward", "loss", "init_criterion", "predict")]
        else:
            found[id(module)] = module
        found.update({id(thing): thing for thing in callables if thing is not None and not is_known(thing)})
    return found


def _hooks(module: torch.nn.Module) -> Iterator[Mapping[int, Any]]:
    for holder in (module, *(p for p in module._parameters.values() if p is not None)):
        for name in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            yield getattr(holder, name, None) or {}
        yield getattr(holder, "_post_accumulate_grad_hooks", None) or {}


def named(own: Iterable[Any]) -> str:
    """Return the names of users' code, for a line."""
    names = {getattr(thing, "__qualname__", type(thing).__name__): None for thing in own}
    return ", ".join(list(names)[:3]) + (", …" if len(names) > 3 else "")


def unwrapped(model: Any) -> Any:
    """Return the model that DDP or `torch.compile` wraps; a user's own attribute `module` isn't taken for one."""
    while isinstance(model, torch.nn.Module):
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    return model
