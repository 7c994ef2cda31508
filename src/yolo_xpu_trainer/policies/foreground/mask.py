"""A boolean mask on the device whose positions are found once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ...known_tensors import Answer, KnownTensor, PlainError
from ...run import Run, StashKey
from ...stopwatch import TARGETS, timed

__all__ = ["KnownMask", "known_mask", "tracked"]


class KnownMask(KnownTensor):
    """A boolean mask whose positions are found when they are first needed, and that is indexed by from then on.

    It answers what losses ask of such a mask (indexing with it or its rows, `nonzero(as_tuple=True)`, and the truth of
    its `any()` and `sum()`) with what a plain tensor gives.
    """

    _positions: torch.Tensor | None = None  # as `nonzero()` gives them
    _row_of: tuple[KnownMask, int] | None = None
    _rows: tuple[torch.Tensor, ...] | None = None  # the positions in each row
    _lengths: torch.Tensor | None = None  # how many each row has, on the host, where they were found with the positions
    _run: Run | None = None

    def is_valid(self) -> bool:
        """Whether the contents are what they were, those that it is a row of among them."""
        return super().is_valid() and (self._row_of is None or self._row_of[0].is_valid())

    def forget(self) -> None:
        """Know nothing any more, of that which it is a row of, either."""
        super().forget()
        if self._row_of is not None:
            self._row_of[0].forget()


class _Number(KnownTensor):
    """What `sum()` or `any()` of a mask is, on the device; the host is told without a sync."""

    _mask: KnownMask


def known_mask(mask: torch.Tensor, row_of: tuple[KnownMask, int] | None = None, run: Run | None = None) -> torch.Tensor:
    """Return a mask of the same memory, whose positions will be found once.

    Args:
        mask: Boolean, on the device.
        row_of: A mask that it is a row of, and its number there.
        run: Whose time is counted where the device is waited for.
    """
    if mask.is_inference():  # its changes couldn't be told
        return mask
    known: KnownMask = mask.as_subclass(KnownMask)  # type: ignore[no-untyped-call]
    known._at, known._row_of, known._run = known._version, row_of, run
    return known


_BY_ROW = StashKey[bool]()
"""Whether a loss goes through such a mask row by row."""


def _waiting(mask: KnownMask) -> AbstractContextManager[None]:
    """Return a context in which the device is waited for."""
    return nullcontext() if mask._run is None else timed(mask._run, TARGETS)


def _positions(mask: Any) -> torch.Tensor | None:
    """Return where a mask is true, as `nonzero()` does; None if it isn't known to be what it was."""
    if type(mask) is not KnownMask or not mask.is_valid():
        return None
    if mask._positions is None:
        with torch.inference_mode(False):  # else nothing that needs a gradient could be indexed by them later
            mask._positions = _found(mask) if mask._row_of is None else _row(*mask._row_of)
    return mask._positions


def _found(mask: KnownMask) -> torch.Tensor:
    if mask.dim() != 2 or mask._run is None or not mask._run.stash.get(_BY_ROW, False):
        with _waiting(mask):
            return mask.nonzero()
    lengths = torch.empty(len(mask), dtype=torch.long, pin_memory=True)
    lengths.copy_(mask.sum(1), non_blocking=True)
    copied = torch.xpu.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.xpu.current_stream(mask.device))
    with _waiting(mask):
        positions = mask.nonzero()  # it waits for its number, and queues are in order, so that the copy has come, too
        if not copied.query():
            copied.synchronize()
    mask._lengths = lengths
    return positions


def _row(mask: KnownMask, number: int) -> torch.Tensor | None:
    """Return the positions in a row of a mask, which are found for all rows at once."""
    positions = _positions(mask)
    if mask._rows is None and positions is not None:
        if mask._run is not None:
            mask._run.stash[_BY_ROW] = True
        mask._rows = torch.split(positions[:, 1:], _lengths(mask, positions))
    return None if positions is None or mask._rows is None else mask._rows[number]


def _lengths(mask: KnownMask, positions: torch.Tensor) -> list[int]:
    if mask._lengths is not None:
        return mask._lengths.tolist()  # type: ignore[no-any-return]
    with _waiting(mask):
        images = positions[:, 0].cpu()
    return images.bincount(minlength=len(mask)).tolist()  # type: ignore[no-any-return]


def _getitem(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, index = args
    if type(index) is tuple and len(index) == 1 and type(index[0]) is KnownMask:
        (index,) = index  # as PyTorch 2.5 gives a mask that something is indexed by
    if type(index) is KnownMask and _fits(index, tensor):
        positions = _positions(index)
        if positions is not None:
            return func(tensor, positions.unbind(1))
    found = func(tensor, index)
    return known_mask(found, (tensor, index)) if type(index) is int and _has_rows(tensor) else found


def _setitem(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, index, value = args
    # One number for all needs no positions.
    if type(index) is KnownMask and _fits(index, tensor) and isinstance(value, torch.Tensor) and value.dim():
        positions = _positions(index)
        if positions is not None:
            return func(tensor, positions.unbind(1), value)
    return func(tensor, index, value)


def _fits(mask: torch.Tensor, tensor: Any) -> bool:
    """Whether indexing a tensor by a mask is indexing it by its positions: else PyTorch says what is wrong."""
    return mask.dim() > 0 and tensor.device == mask.device and tensor.shape[: mask.dim()] == mask.shape


def _has_rows(mask: Any) -> bool:
    return type(mask) is KnownMask and mask.dim() == 2 and mask.is_valid()


def _unbind(func: Any, args: Any, kwargs: Any) -> Any:
    mask, *others = args
    rows = func(*args, **kwargs)
    if not _has_rows(mask) or (*others, *kwargs.values()) not in ((), (0,)):
        return rows
    return tuple(known_mask(row, (mask, i)) for i, row in enumerate(rows))


def _nonzero(func: Any, args: Any, kwargs: Any) -> Any:
    positions = _positions(args[0]) if len(args) == 1 and kwargs == {"as_tuple": True} else None
    if positions is None:
        raise PlainError
    return positions.clone().unbind(1)


def _count(func: Any, args: Any, kwargs: Any) -> Any:
    mask, *others = args
    if others or kwargs or type(mask) is not KnownMask or not mask.is_valid():
        raise PlainError
    with torch.inference_mode(False):  # else a change of the number couldn't be told
        number: _Number = func(mask).as_subclass(_Number)
    number._mask, number._at = mask, number._version
    return number


def _convert(func: Any, args: Any, kwargs: Any) -> Any:
    (number,) = args
    positions = _positions(number._mask) if type(number) is _Number and number.is_valid() else None
    if positions is None:
        raise PlainError
    count = len(positions)
    return _CONVERSIONS[func](count if number.dtype is not torch.bool else count > 0)


_CONVERSIONS: dict[Any, Callable[[Any], Any]] = {
    torch.Tensor.__bool__: bool,
    torch.Tensor.__int__: int,
    torch.Tensor.__float__: float,
    torch.Tensor.item: lambda value: value,
}
_ANSWERS: dict[Any, Answer] = {
    torch.Tensor.__getitem__: _getitem,
    torch.Tensor.__setitem__: _setitem,
    torch.Tensor.unbind: _unbind,
    torch.unbind: _unbind,
    torch.Tensor.nonzero: _nonzero,
    torch.nonzero: _nonzero,
    torch.Tensor.any: _count,
    torch.any: _count,
    torch.Tensor.sum: _count,
    torch.sum: _count,
    **dict.fromkeys(_CONVERSIONS, _convert),
}
KnownMask.answers = _Number.answers = _ANSWERS


def tracked(mask: torch.Tensor) -> torch.Tensor:
    """Return a mask whose changes can be told, which in a validation takes a copy."""
    if not mask.is_inference():
        return mask
    with torch.inference_mode(False):
        return mask.clone()
