"""What a loss asks of a batch's labels, the host answers: it had them before they were moved to the device.

Losses count labels, filter small ones and compare image indices, with a sync for each. Here Ultralytics' own losses get
labels whose values the host knows, too. What is computed from them by a few plain operations is computed on both, and
the host tells a number, a count or the places of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, TypeGuard

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ...criterion import is_ultralytics
from ...known_tensors import Answer, KnownTensor, PlainError
from ...patches import patch
from ...run import Run, StashKey

__all__ = ["IN_LOSS", "HostKnown", "keep", "known", "loss"]

_LABELS = ("batch_idx", "cls", "bboxes")
_BYTES = 1 << 20  # the most that labels have, so that the host isn't the slower one
_SMALL = 16  # elements of a model's strides, of which the host keeps a copy
_SLICES = 64  # the most that a mask is taken in, each of which costs the host a view


class HostKnown(KnownTensor):
    """A tensor on the device whose contents the host knows."""

    _host: torch.Tensor


def known(tensor: Any, host: torch.Tensor) -> Any:
    """Return a tensor of the same memory, whose contents the host knows.

    Args:
        tensor: On the device; what is no tensor there, or needs a gradient, is returned as it is.
        host: The same values on the host.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.device.type == "cpu":
        return tensor
    if tensor.is_inference() or tensor.requires_grad:
        return tensor
    made: HostKnown = tensor.as_subclass(HostKnown)  # type: ignore[no-untyped-call]
    made._host, made._at = host, made._version
    return made


def _is_known(value: Any) -> TypeGuard[HostKnown]:
    return type(value) is HostKnown and value.is_valid()


def _host_of(value: Any) -> torch.Tensor:
    if not _is_known(value):
        raise PlainError
    return value._host


def _on_host(value: Any) -> Any:
    """Return an argument as the host knows it."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_on_host, value))
    if isinstance(value, torch.Tensor):
        return _host_of(value)
    if type(value) not in (bool, int, float):
        raise PlainError
    return value


def _on_both(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute on the device and on the host."""
    if kwargs:
        raise PlainError
    hosts = _on_host(args)
    found = func(*args)
    return found if any(found is value for value in args) else known(found, func(*hosts))


def _largest(func: Any, args: Any, kwargs: Any) -> Any:
    if len(args) != 1:
        raise PlainError
    return _on_both(func, args, kwargs)


def _scaled(func: Any, args: Any, kwargs: Any) -> Any:
    """Multiply, by a number or by one of a model's strides, which are read once."""
    if len(args) != 2 or kwargs:
        raise PlainError
    tensor, other = args
    if type(other) is torch.Tensor and _is_known(tensor) and (stride := _stride(other)) is not None:
        return known(func(tensor, other), func(tensor._host, stride))
    return _on_both(func, args, kwargs)


_strides = WeakTensorKeyDictionary()
"""Copies on the host of models' strides, with the version that they are of."""


def _stride(tensor: torch.Tensor) -> torch.Tensor | None:
    base = tensor._base
    if base is None or tensor.dim() or base.numel() > _SMALL or base.is_inference() or not base.is_contiguous():
        return None
    version, address, host = _strides.get(base, (None, None, None))  # type: ignore[no-untyped-call]
    if (version, address) != (base._version, base.data_ptr()):
        host = base.detach().cpu().flatten()
        _strides[base] = base._version, base.data_ptr(), host
    return host[tensor.storage_offset() - base.storage_offset()]  # type: ignore[no-any-return]


def _converted(func: Any, args: Any, kwargs: Any) -> Any:
    """Convert to another dtype, or device."""
    host = _host_of(args[0])
    found = func(*args, **kwargs)
    return found if found is args[0] else known(found, host.to(found.dtype))


def _told(func: Any, args: Any, kwargs: Any) -> Any:
    """Tell a number, or numbers."""
    (tensor,) = args
    return func(_host_of(tensor))


def _sized(func: Any, args: Any, kwargs: Any) -> Any:
    """Make a tensor whose size the host knows."""

    def size(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(size, value))
        is_size = _is_known(value) and value.dim() == 0 and not value.is_floating_point()
        return int(value._host) if is_size else value

    first = args[:1] if func is torch.Tensor.new_zeros else ()
    return func(*first, *map(size, args[len(first) :]), **kwargs)


def _indexed(func: Any, args: Any, kwargs: Any) -> Any:
    """Take what an index or a mask names."""
    tensor, index = args
    if type(index) is tuple and len(index) == 1:
        (index,) = index  # as PyTorch before 2.10 or so gives it
    if isinstance(index, torch.Tensor):
        mask = _host_of(index)
        if mask.dtype is not torch.bool or mask.dim() != 1 or tensor.device != index.device:
            raise PlainError
        if tensor.shape[:1] != mask.shape:
            raise PlainError
        found = _joined(tensor, mask)
        return known(found, tensor._host[mask]) if _is_known(tensor) else found
    host = _host_of(tensor)
    if isinstance(index, list) and index and tensor.dim() == 1 and all(type(i) is int and i >= 0 for i in index):
        return known(torch.cat([tensor[i : i + 1] for i in index]), host[index])  # else it is copied to the device
    if not _is_basic(index):
        raise PlainError
    return known(func(tensor, index), host[index])


def _is_basic(index: Any) -> bool:
    """Whether an index is made of numbers and slices."""
    if isinstance(index, tuple):
        return all(map(_is_basic, index))
    return index is None or index is Ellipsis or isinstance(index, slice) or type(index) is int


def _joined(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the rows of a tensor that a mask on the host names, without copying an index to the device."""
    slices = list(_runs(mask.tolist()))
    if len(slices) > _SLICES:
        raise PlainError
    return torch.cat([tensor[first:last] for first, last in slices]) if slices else tensor[:0].clone()


def _runs(mask: list[bool]) -> Iterator[tuple[int, int]]:
    """Yield where each row of true values begins and ends."""
    at = 0
    for value, group in groupby(mask):
        first, at = at, at + len(list(group))
        if value:
            yield first, at


def _unique(func: Any, args: Any, kwargs: Any) -> Any:
    """Return a batch's images, in order, and how many labels each has."""
    asked = {name for name, value in kwargs.items() if value not in (None, False)} - {"sorted"}
    if len(args) != 1 or asked != {"return_counts"} or kwargs.get("sorted") is False:
        raise PlainError
    (tensor,) = args
    values, counts = torch.unique(_host_of(tensor), return_counts=True)
    images = values.long()
    if tensor.dim() != 1 or not len(images) or len(images) > _SLICES or int(images[0]) < 0 or not images.equal(values):
        raise PlainError
    of_all = _counted(tensor, int(images[-1]) + 1)
    every = torch.arange(len(of_all), dtype=tensor.dtype, device=tensor.device)
    present = torch.zeros(len(of_all), dtype=torch.bool).index_fill_(0, images, True)
    return known(_joined(every, present), values), known(_joined(of_all, present), counts)


def _bincount(func: Any, args: Any, kwargs: Any) -> Any:
    """Count the labels of each image."""
    if len(args) != 1 or kwargs.keys() - {"minlength"}:
        raise PlainError
    (tensor,) = args
    counts = func(_host_of(tensor), **kwargs)
    return known(_counted(tensor, len(counts)), counts)


def _counted(tensor: torch.Tensor, images: int) -> torch.Tensor:
    """Count on the device, where it is known how many kinds there are."""
    index = tensor.long()
    return torch.zeros(images, dtype=torch.long, device=tensor.device).scatter_add_(0, index, torch.ones_like(index))


_ANSWERS: dict[Any, Answer] = {
    **dict.fromkeys((torch.Tensor.view, torch.Tensor.flatten, torch.cat), _on_both),
    **dict.fromkeys((torch.Tensor.ge, torch.Tensor.eq, torch.Tensor.__eq__, torch.Tensor.__and__), _on_both),
    **dict.fromkeys((torch.Tensor.long, torch.Tensor.to), _converted),
    torch.Tensor.max: _largest,
    torch.Tensor.mul: _scaled,
    torch.Tensor.__getitem__: _indexed,
    **dict.fromkeys((torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__bool__), _told),
    **dict.fromkeys((torch.Tensor.__index__, torch.Tensor.item, torch.Tensor.tolist), _told),
    **dict.fromkeys((torch.zeros, torch.Tensor.new_zeros), _sized),
    **dict.fromkeys((torch.unique, torch.Tensor.unique), _unique),
    torch.bincount: _bincount,
}
HostKnown.answers = _ANSWERS


_HOST = StashKey[WeakTensorKeyDictionary]()
"""The labels as they were on the host, of those on the device, with these tensors' versions and addresses."""
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
            # A loader may use its memory again.
            run.stash[_HOST][there] = host.clone(), there._version, there.data_ptr()


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
        if entry is not None and (there._version, there.data_ptr()) == entry[1:]:
            labels[key] = known(there, entry[0])
    return {**batch, **labels}


@patch(
    "ultralytics.nn.tasks:BaseModel.loss",
    why="losses count and filter the labels on the device, with a sync each time, though the host had them",
    source="ultralytics/utils/loss.py",
)
def loss(run: Run, original: Callable[..., Any], self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute Ultralytics' own loss with labels that are known to the host."""
    if type(batch) is not dict or not is_ultralytics(run, self):
        return original(self, batch, *args, **kwargs)
    before = run.stash.get(IN_LOSS, False)
    run.stash[IN_LOSS] = True
    try:
        return original(self, _with_hosts(run, batch), *args, **kwargs)
    finally:
        run.stash[IN_LOSS] = before
