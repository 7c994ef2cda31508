"""Small tensors go to the device together: a copy costs its submission, however little it copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["moved_together"]

# Not measured on hardware: what the host copies in about the time that a copy to the device takes to submit.
_SMALL = 128 * 1024
_ALIGNMENT = 512  # what PyTorch's allocator gives a tensor that has memory of its own


def moved_together(batch: Mapping[str, Any], device: torch.device, *, non_blocking: bool) -> dict[str, Any]:
    """Copy a batch's small tensors to the device by way of one pinned buffer.

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
