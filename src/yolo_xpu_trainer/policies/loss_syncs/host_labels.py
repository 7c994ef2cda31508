"""What a loss asks of a batch's labels, the host answers: it had them before they were moved to the device.

Losses count labels, filter small ones and compare image indices, with a sync for each. Here Ultralytics' own losses get
labels whose values the host knows, too. What is computed from them by a few plain operations is computed on both, and
the host tells a number, a count or the places of a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ...own_code import is_known
from ...patches import patch
from ...run import Run, StashKey

__all__ = ["IN_LOSS", "HostKnown", "keep", "known", "loss"]

_LABELS = ("batch_idx", "cls", "bboxes")
_BYTES = 1 << 20  # the most that labels have, so that the host isn't the slower one
_SMALL = 16  # elements of a model's strides, of which the host keeps a copy


class _UnknownError(Exception):
    """The host doesn't know a tensor."""


class HostKnown(torch.Tensor):
    """A tensor on the device whose contents the host knows, and a plain one to whatever isn't listed below.

    They are known as long as its version is what it was: a version changes with the contents, whichever tensor of the
    same memory they are changed by.
    """

    _host: torch.Tensor
    _at: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer from what the host knows, or leave it to the plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            answer = None if _is_transformed() else _ANSWERS.get(func)
            if answer is None:
                return func(*args, **(kwargs or {}))
            return answer(func, args, kwargs or {})


def known(tensor: torch.Tensor, host: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same memory, whose contents the host knows.

    Args:
        tensor: On the device.
        host: The same values on the host.
    """
    if tensor.is_inference() or tensor.requires_grad or tensor.device.type == "cpu":
        return tensor
    made: HostKnown = tensor.as_subclass(HostKnown)  # type: ignore[no-untyped-call]
    made._host, made._at = host, made._version
    return made


def _is_transformed() -> bool:
    """Whether PyTorch's compiler or one of `torch.func` computes with other tensors than there are."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def _is_valid(value: Any) -> TypeGuard[HostKnown]:
    return type(value) is HostKnown and value._at == value._version


def _on_host(value: Any) -> Any:
    """Return an argument as the host knows it.

    Raises:
        _UnknownError: It doesn't.
    """
    if isinstance(value, (tuple, list)):
        return type(value)(map(_on_host, value))
    if not isinstance(value, torch.Tensor):
        return value
    if not _is_valid(value):
        raise _UnknownError
    return value._host


def _on_both(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute on the device, and on the host where that knows everything."""
    found = func(*args, **kwargs)
    if any(found is value for value in args):
        return found
    try:
        return known(found, func(*_on_host(args), **kwargs))
    except _UnknownError:
        return found


def _scaled(func: Any, args: Any, kwargs: Any) -> Any:
    """Multiply, by a number or by one of a model's strides, which are read once."""
    tensor, other = args
    if type(other) is torch.Tensor and _is_valid(tensor) and (host := _stride(other)) is not None:
        return known(func(tensor, other), func(tensor._host, host))
    return _on_both(func, args, kwargs)


_strides = WeakTensorKeyDictionary()
"""Copies on the host of models' strides, with the version that they are of."""


def _stride(tensor: torch.Tensor) -> torch.Tensor | None:
    base = tensor._base
    if base is None or tensor.dim() or base.numel() > _SMALL or base.is_inference():
        return None
    version, host = _strides.get(base, (None, None))  # type: ignore[no-untyped-call]
    if version != base._version:
        host = base.detach().cpu()
        _strides[base] = base._version, host
    return host.flatten()[tensor.storage_offset() - base.storage_offset()] if base.is_contiguous() else None


def _converted(func: Any, args: Any, kwargs: Any) -> Any:
    """Convert to another dtype, or device."""
    found = func(*args, **kwargs)
    if found is args[0] or not _is_valid(args[0]):
        return found
    return known(found, args[0]._host.to(found.dtype))


def _told(func: Any, args: Any, kwargs: Any) -> Any:
    """Tell a number, or numbers."""
    (tensor,) = args
    return func(tensor._host if _is_valid(tensor) else tensor)


def _sized(func: Any, args: Any, kwargs: Any) -> Any:
    """Make a tensor whose size the host knows."""

    def size(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(size, value))
        return int(value._host) if _is_valid(value) and value.dim() == 0 else value

    first = args[:1] if func is torch.Tensor.new_zeros else ()
    return func(*first, *map(size, args[len(first) :]), **kwargs)


def _indexed(func: Any, args: Any, kwargs: Any) -> Any:
    """Take what an index or a mask names."""
    tensor, index = args
    if _is_valid(index) and index.dtype is torch.bool and index.dim() == 1 and index.shape == tensor.shape[:1]:
        if index._host.all():
            found = tensor.clone()
        else:
            found = func(tensor, _sent(index._host.nonzero().squeeze(1), tensor.device))
        return known(found, tensor._host[index._host]) if _is_valid(tensor) else found
    if not _is_valid(tensor) or not _is_fixed(index):
        return func(tensor, index)
    if isinstance(index, list) and tensor.dim() == 1:  # which would be copied to the device
        return known(torch.cat([func(tensor, slice(i, i + 1)) for i in index]), tensor._host[index])
    return known(func(tensor, index), tensor._host[index])


def _is_fixed(index: Any) -> bool:
    """Whether an index is made of numbers that aren't negative, slices, and so on."""
    if isinstance(index, (tuple, list)):
        return all(map(_is_fixed, index))
    return index is None or index is Ellipsis or isinstance(index, slice) or (type(index) is int and index >= 0)


def _unique(func: Any, args: Any, kwargs: Any) -> Any:
    (tensor, *others) = args
    asked = {name for name, value in kwargs.items() if value not in (None, False)} - {"sorted"}
    if others or asked != {"return_counts"} or not _is_valid(tensor) or tensor.dtype is not torch.long:
        return func(*args, **kwargs)
    values, counts = torch.unique(tensor._host, return_counts=True)
    sent = _sent(torch.stack((values, counts)), tensor.device)
    return known(sent[0], values), known(sent[1], counts)


def _bincount(func: Any, args: Any, kwargs: Any) -> Any:
    (tensor, *others) = args
    if others or not _is_valid(tensor):
        return func(*args, **kwargs)
    counts = func(tensor._host, **kwargs)
    return known(_sent(counts, tensor.device), counts)


def _sent(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device, while the host goes on."""
    return host.pin_memory().to(device, non_blocking=True)


_ANSWERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.Tensor.view, torch.Tensor.flatten, torch.cat, torch.Tensor.max), _on_both),
    **dict.fromkeys((torch.Tensor.ge, torch.Tensor.eq, torch.Tensor.__eq__, torch.Tensor.__and__), _on_both),
    **dict.fromkeys((torch.Tensor.long, torch.Tensor.to), _converted),
    torch.Tensor.mul: _scaled,
    torch.Tensor.__getitem__: _indexed,
    **dict.fromkeys((torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__bool__), _told),
    **dict.fromkeys((torch.Tensor.__index__, torch.Tensor.item, torch.Tensor.tolist), _told),
    **dict.fromkeys((torch.zeros, torch.Tensor.new_zeros), _sized),
    **dict.fromkeys((torch.unique, torch.Tensor.unique), _unique),
    torch.bincount: _bincount,
}


_HOST = StashKey[WeakTensorKeyDictionary]()
"""The labels as they were on the host, of those on the device, with both tensors' versions."""
IN_LOSS = StashKey[bool]()
"""Whether one of Ultralytics' own losses is being computed."""


def keep(run: Run, batch: Any, moved: Any) -> None:
    """Keep a batch's labels on the host for as long as those on the device are there.

    Args:
        run: The run.
        batch: The batch on the host, by key.
        moved: The same on the device.
    """
    if not isinstance(batch, dict) or not isinstance(moved, dict):
        return
    for key in _LABELS:
        host, there = batch.get(key), moved.get(key)
        if host is not None and there is not None and _are_labels(host, there):
            if _HOST not in run.stash:
                run.stash[_HOST] = WeakTensorKeyDictionary()
            run.stash[_HOST][there] = host, host._version, there._version


def _are_labels(host: Any, there: Any) -> bool:
    """Whether a tensor is the copy of another one, of which the host may compute."""
    if type(host) is not torch.Tensor or type(there) is not torch.Tensor:
        return False
    if host.device.type != "cpu" or there.device.type != "xpu" or host.is_inference() or there.is_inference():
        return False
    return host.dtype is there.dtype and host.shape == there.shape and 0 < host.numel() * host.element_size() <= _BYTES


def _with_hosts(run: Run, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose labels are known to the host, where nobody has changed them."""
    if _HOST not in run.stash:
        return batch
    labels = {}
    for key in _LABELS:
        there: Any = batch.get(key)
        entry = run.stash[_HOST].get(there) if type(there) is torch.Tensor else None  # type: ignore[no-untyped-call]
        if entry is not None and (entry[0]._version, there._version) == entry[1:]:
            labels[key] = known(there, entry[0])
    return {**batch, **labels}


@patch(
    "ultralytics.nn.tasks:BaseModel.loss",
    why="losses count and filter the labels on the device, with a sync each time, though the host had them",
    source="ultralytics/utils/loss.py",
)
def loss(run: Run, original: Callable[..., Any], self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute Ultralytics' own loss with labels that are known to the host."""
    criterion = getattr(self, "criterion", None)
    if type(batch) is not dict or not is_known(type(self).init_criterion if criterion is None else type(criterion)):
        return original(self, batch, *args, **kwargs)
    before = run.stash.get(IN_LOSS, False)
    run.stash[IN_LOSS] = True
    try:
        return original(self, _with_hosts(run, batch), *args, **kwargs)
    finally:
        run.stash[IN_LOSS] = before
