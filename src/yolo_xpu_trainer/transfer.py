"""Many tensors copied from the device to the host at once: each copy by itself makes the host wait."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

__all__ = ["to_host"]

# What is joined on the device at a time: little memory, for a save must not run out of it, but in few parts.
_BYTES, _PARTS = 4 << 20, 32


def to_host(tensors: Sequence[torch.Tensor], staged: int | None = None) -> list[torch.Tensor]:
    """Copy tensors to the host.

    They are joined on the device, as many at a time as `staged` bytes hold, so that the host waits once for them.

    Args:
        tensors: Tensors of any shapes and dtypes; what is on the host already is returned as it is.
        staged: How many bytes of the device's memory the joining may take. By default 4 MiB, or a 32nd of all.

    Returns:
        The same numbers in contiguous tensors on the host, in order.
    """
    found = list(tensors)
    if staged is None:
        staged = max(_BYTES, sum(t.numel() * t.element_size() for t in found) // _PARTS)
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
