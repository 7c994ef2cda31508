"""What a trial changes is put back: tensors, attributes of modules, random numbers, switches."""

from __future__ import annotations

import inspect
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["exact", "restored", "same_random_numbers"]


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
    """Let a model compute, without dropout, on copies of its tensors; then put back its tensors and attributes."""
    noted = _Noted()
    for module in model.modules():
        noted.add_container(vars(module))
    for module in model.modules():
        noted.look_into(vars(module))
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
            elif type(value) in (list, dict, set, deque, OrderedDict, defaultdict):
                if self.add_container(value):
                    self.look_into(value, within_object)
            elif _has_attributes(value) and not within_object and self.add_container(vars(value)):
                self.look_into(vars(value), within_object=True)

    def put_back(self) -> None:
        """Let each container have what it had."""
        for container, items in self._contents.values():
            container.clear()
            container.extend(items) if isinstance(container, (list, deque)) else container.update(items)


def _has_attributes(value: Any) -> bool:
    return isinstance(getattr(value, "__dict__", None), dict) and not (
        isinstance(value, type) or inspect.isroutine(value) or inspect.ismodule(value)
    )
