"""Many tensors in one copy, either way: to the host each copy is a sync, to the device it costs its submission."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from .device_errors import is_out_of_memory

__all__ = ["to_device", "to_host"]

# What is joined on the device at a time: little memory, so that a save does not run out of it, in few parts.
_BYTES, _PARTS = 4 << 20, 32


def to_host(tensors: Sequence[torch.Tensor], staged: int | None = None) -> list[torch.Tensor]:
    """Copy tensors to the host.

    They are joined on the device, as many at a time as `staged` bytes hold, so that the host waits once for them.

    Args:
        tensors: Tensors of any shapes and dtypes; what is on the host already is returned as it is.
        staged: How many bytes of the device's memory the joining may take. By default 4 MiB, or a 32nd of all, and none
            where there is no memory for that.

    Returns:
        The same numbers in contiguous tensors on the host, in order.
    """
    if staged is None:
        there = sum(t.numel() * t.element_size() for t in tensors if t.device.type != "cpu")
        try:
            return to_host(tensors, max(_BYTES, there // _PARTS))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            staged = 0
    found = list(tensors)
    by_kind: dict[Any, list[int]] = {}
    for i, tensor in enumerate(found):
        if tensor.device.type != "cpu":
            by_kind.setdefault((tensor.device, tensor.dtype), []).append(i)
    for indices in by_kind.values():
        for chunk in _chunks(found, indices, staged):
            joined = torch.cat([found[i].detach().reshape(-1) for i in chunk]) if len(chunk) > 1 else found[chunk[0]]
            parts = torch.split(joined.detach().cpu().reshape(-1), [found[i].numel() for i in chunk])
            for i, part in zip(chunk, parts, strict=True):
                found[i] = part.view(found[i].shape)
    return found


def _chunks(tensors: list[torch.Tensor], indices: Iterable[int], staged: int) -> Iterable[list[int]]:
    """Yield the indices in groups whose tensors have `staged` bytes together, or one tensor that has more."""
    chunk: list[int] = []
    size = 0
    for i in indices:
        n = tensors[i].numel() * tensors[i].element_size()
        if chunk and size + n > staged:
            yield chunk
            chunk, size = [], 0
        chunk.append(i)
        size += n
    if chunk:
        yield chunk


# Not measured on hardware: what the host copies in about the time that a copy to the device takes to submit.
_SMALL = 128 * 1024
_ALIGNMENT = 512  # what PyTorch's allocator gives a tensor that has memory of its own


def to_device(batch: Mapping[str, Any], device: torch.device, *, non_blocking: bool) -> dict[str, Any]:
    """Copy the small tensors of a batch to the device by way of one pinned buffer.

    What comes out has the values, dtypes, shapes and strides of single copies. The tensors share memory, but none is a
    view, so that autograd tells a change to one from a change to another.

    Args:
        batch: A batch on the host.
        device: Where to.
        non_blocking: Whether the host goes on meanwhile.

    Returns:
        The copies by key; empty where they would be no fewer.
    """
    small = {key: value for key, value in batch.items() if _is_small(value)}
    if sum(value.numel() > 0 for value in small.values()) < 2:
        return {}
    offsets, size = {}, 0
    for key, value in small.items():
        offsets[key] = size
        size += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    for key, value in small.items():
        _carved(packed, offsets[key], value).copy_(value)
    there = packed.to(device, non_blocking=non_blocking)
    return {key: _carved(there, offsets[key], value) for key, value in small.items()}


def _is_small(value: object) -> bool:
    return (
        type(value) is torch.Tensor
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and value.nbytes <= _SMALL
        and value.is_contiguous()
    )


def _carved(buffer: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a part of the buffer's memory."""
    empty = torch.empty(0, dtype=like.dtype, device=buffer.device)
    return empty.set_(buffer.untyped_storage(), offset // like.element_size(), like.shape, like.stride())  # type: ignore[call-overload,no-any-return]
