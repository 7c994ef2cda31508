"""What a trial changes is put back: tensors, attributes of modules, random numbers, switches."""

from __future__ import annotations

import functools
import inspect
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ...own_code import is_known, own_code

__all__ = ["exact", "restored", "same_random_numbers"]

_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in float32, as IEEE float32."""
    switches: Any = torch.backends.mkldnn
    before = getattr(switches, "allow_tf32", None)
    if before is not None:
        switches.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False), torch.enable_grad():
            yield
    finally:
        if before is not None:
            switches.allow_tf32 = before


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave every random generator as it was."""
    indices = [] if device.index is None or device.type == "cpu" else [device.index]
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(indices, device_type=device.type if indices else "cuda"):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def restored(model: torch.nn.Module) -> Iterator[None]:
    """Let a model compute, without dropout, on copies of its tensors; then put back its tensors and attributes.

    So is what users' code collects outside of the model, in lists, dicts and objects that it refers to.
    """
    noted = _Noted()
    for module in model.modules():
        noted.add_container(vars(module))
    for module in model.modules():
        noted.look_into(vars(module))
    noted.look_beyond(own_code(model).values())
    originals = [(tensor, tensor.data) for tensor in noted.tensors.values()]
    try:
        for module in model.modules():
            if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                module.training = False  # which elements it drops depends on their order in memory
        for tensor, original in originals:
            tensor.data = original.clone()
        yield
    finally:
        for tensor, original in originals:
            tensor.data = original
        noted.put_back()


class _Noted:
    """Tensors and containers that modules hold, with what was in the containers.

    Objects that a module holds, such as its loss, count as containers of their attributes; what they hold doesn't.
    """

    def __init__(self) -> None:
        self.tensors: dict[int, torch.Tensor] = {}
        self._contents: dict[int, tuple[Any, list[Any]]] = {}

    def add_container(self, container: Any) -> bool:
        """Note what is in a container; return whether it is a new one."""
        new = id(container) not in self._contents
        if new:
            items = container.items() if isinstance(container, dict) else container
            self._contents[id(container)] = container, list(items)
        return new

    def look_into(self, container: Any, within_object: bool = False) -> None:
        """Note what the values of a noted container have in them."""
        for value in list(container.values() if isinstance(container, dict) else container):
            if isinstance(value, torch.Tensor):
                if type(value) in (torch.Tensor, torch.nn.Parameter) and not value.is_inference() and value.is_leaf:
                    self.tensors[id(value)] = value
            elif type(value) in _CONTAINERS:
                if self.add_container(value):
                    self.look_into(value, within_object)
            elif _has_attributes(value) and not within_object and self.add_container(vars(value)):
                self.look_into(vars(value), within_object=True)

    def look_beyond(self, code: Iterable[Any]) -> None:
        """Note the containers that users' code refers to: hooks collect in them what a loss takes out of them."""
        waiting = list(code)
        seen: dict[int, Any] = {}
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen[id(value)] = value
            if type(value) in _CONTAINERS:
                self.add_container(value)
                waiting += value.values() if isinstance(value, dict) else value
            elif not is_known(value):
                waiting += _references(value)
                # not those of the standard library: other threads use its queues and locks
                if _has_attributes(value) and _root(type(value)) not in sys.stdlib_module_names:
                    waiting.append(vars(value))

    def put_back(self) -> None:
        """Let each container have what it had."""
        for container, items in self._contents.values():
            now = container.items() if isinstance(container, dict) else container
            if _identities(now) != _identities(items):
                container.clear()
                container.extend(items) if isinstance(container, (list, deque)) else container.update(items)


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _identities(items: Iterable[Any]) -> list[Any]:
    return [tuple(map(id, item)) if isinstance(item, tuple) else id(item) for item in items]


def _references(code: Any) -> list[Any]:
    """Return what a function, a method or an object that can be called refers to."""
    if isinstance(code, functools.partial):
        return [code.func, *code.args, *code.keywords.values()]
    if inspect.ismethod(code):
        return [code.__self__, code.__func__]
    if inspect.isfunction(code):
        outside = inspect.getclosurevars(code)
        return [*outside.nonlocals.values(), *outside.globals.values(), *(code.__defaults__ or ())]
    if isinstance(code, type) or inspect.ismodule(code):
        return []
    return [getattr(type(code), name, None) for name in ("forward", "loss", "__call__")]


def _has_attributes(value: Any) -> bool:
    return isinstance(getattr(value, "__dict__", None), dict) and not (
        isinstance(value, type) or inspect.isroutine(value) or inspect.ismodule(value)
    )
