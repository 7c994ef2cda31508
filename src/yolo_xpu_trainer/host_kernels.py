"""Kernels for operators that PyTorch has none of for an XPU: they compute on the host.

PyTorch's own way to have them is the variable `PYTORCH_ENABLE_XPU_FALLBACK`, which it reads as it is loaded, and which
names none of them. Source: torch-xpu-ops, src/ATen/native/xpu/XPUFallback.cpp.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map

__all__ = ["computed_on_the_host", "missing"]

_OTHER_WAYS = (
    "XPU",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
)
_NEVER = ("aten::_fused_", "aten::_foreach_")  # who uses them asks whether they are there, and has a better way

_on_host: set[str] = set()


@functools.cache
def missing() -> tuple[str, ...]:
    """Return the operators that have a kernel for the CPU and none that an XPU could use, as "aten::name.overload".

    It takes some milliseconds, and is found out once a process.
    """
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and not name.startswith(_NEVER)
        and has(name, "CPU")
        and not any(has(name, key) for key in _OTHER_WAYS)
    )


@contextmanager
def computed_on_the_host(names: Iterable[str], notify: Callable[[str], None] | None = None) -> Iterator[None]:
    """Compute operators on the host, wherever they are called for tensors of an XPU.

    Args:
        names: The operators, as "aten::name.overload"; those for which that is so already stay as they are.
        notify: Called with the name of each that is called, once.
    """
    added: set[str] = set()
    library: Any = torch.library.Library("aten", "IMPL", "XPU")  # type: ignore[no-untyped-call]
    try:
        for name in names:
            if name in _on_host:
                continue
            operator = _operator(name)
            if operator is not None and not _returns_views(operator) and not _takes_a_device(operator):
                library.impl(name.removeprefix("aten::"), _kernel(operator, functools.partial(notify or _nobody, name)))
                _on_host.add(name)
                added.add(name)
        yield
    finally:
        _on_host.difference_update(added)
        library._destroy()


def _operator(name: str) -> Any:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)


def _returns_views(operator: Any) -> bool:
    """Whether what an operator returns shares memory with what it is given, as no copy on the host can."""
    aliases = [value.alias_info for value in operator._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _takes_a_device(operator: Any) -> bool:
    """Whether an operator makes a tensor on a device that it is told, which might be given it without any tensor."""
    return any(argument.name == "device" for argument in operator._schema.arguments)


def _nobody(name: str) -> None:
    """Tell nobody."""


def _kernel(operator: Any, notify: Callable[[], None]) -> Callable[..., Any]:
    """Return a function that takes the place of a kernel for the XPU."""
    arguments = operator._schema.arguments
    written = {a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write}
    positions = {i for i, argument in enumerate(arguments) if argument.name in written}
    said: list[bool] = []

    def computed(*args: Any, **kwargs: Any) -> Any:
        if not said:
            said.append(True)
            notify()
        given = [*args, *kwargs.values()]
        device = next((t.device for t in _tensors(given) if t.device.type == "xpu"), torch.device("xpu"))
        originals: dict[int, torch.Tensor] = {}

        def to_host(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.device.type != "xpu":
                return value
            host = value.cpu()
            originals[id(host)] = value
            return host

        on_host = [tree_map(to_host, value) for value in args]
        named = {key: tree_map(to_host, value) for key, value in kwargs.items()}
        result = operator(*on_host, **named)
        changed = [value for i, value in enumerate(on_host) if i in positions]
        changed += [value for key, value in named.items() if key in written]
        for host in _tensors(changed):
            original = originals.get(id(host))
            if original is None:
                continue
            if original.shape != host.shape:
                original.resize_(host.shape)
            original.copy_(host)

        def back(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return originals[id(value)] if id(value) in originals else value.to(device)

        return tree_map(back, result)

    return computed


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in torch.utils._pytree.tree_leaves(values) if isinstance(value, torch.Tensor)]
