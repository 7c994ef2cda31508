"""The anchors that a loss calls foreground: their positions are found once, not at every use.

Indexing with a boolean mask finds its positions anew, forwards and backwards, with a sync each time for their number;
so does asking whether there are any. A YOLO11n-seg's loss does so 24 times a step on 4 images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..patches import Patch, patch

__all__ = ["ForegroundMask"]

FOREGROUND_ONCE = Option("foreground_once", True, "the anchors that a loss calls foreground are found once a step")


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [FOREGROUND_ONCE]


class ForegroundMask(torch.Tensor):
    """A boolean mask that finds its positions when they are first needed, and is indexed with by them from then on.

    It answers what losses ask of such a mask (`any()`, `sum()`, `nonzero()`, its rows, indexing with it) with the
    values that a plain tensor gives; to everything else it is a plain tensor.
    """

    _positions: tuple[torch.Tensor, ...] | None = None
    _rows: list[ForegroundMask] | None = None
    _at: int | None = None

    @classmethod
    def of(cls, mask: torch.Tensor, positions: tuple[torch.Tensor, ...] | None = None) -> ForegroundMask:
        """Return a mask of the same bytes.

        Args:
            mask: Boolean.
            positions: Where it is true, an index tensor for each dimension, if known.
        """
        made: ForegroundMask = mask.as_subclass(cls)  # type: ignore[no-untyped-call]
        if positions is not None:
            made._remember(positions)
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer from the positions, or leave it to the plain tensor."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            answer = _ANSWERS.get(func)
            if answer is not None and (found := answer(*args, **kwargs)) is not None:
                return found
            return func(*args, **kwargs)

    def positions(self) -> tuple[torch.Tensor, ...]:
        """Return where it is true, as `nonzero(as_tuple=True)` does."""
        if self._positions is None or self._at != _version(self):
            self._remember(self.nonzero(as_tuple=True))  # type: ignore[no-untyped-call]
        assert self._positions is not None
        return self._positions

    def count(self) -> int:
        """Return how often it is true."""
        return len(self.positions()[0])

    def rows(self) -> list[ForegroundMask]:
        """Return its parts along the first dimension; where each is true is known from where all are."""
        first, *others = self.positions()
        if self._rows is None:
            lengths = first.cpu().bincount(minlength=len(self)).tolist()
            parts = zip(*(torch.split(other, lengths) for other in others), strict=True)
            self._rows = [self.of(row, part) for row, part in zip(self.unbind(0), parts, strict=True)]
        return self._rows

    def _remember(self, positions: tuple[torch.Tensor, ...]) -> None:
        self._positions, self._at, self._rows = positions, _version(self), None


class _KnownNumber(torch.Tensor):
    """A number on the device that the host knows."""

    value = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in (torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.item):
                return {torch.Tensor.__bool__: bool, torch.Tensor.__float__: float}.get(func, int)(args[0].value)
            return func(*args, **(kwargs or {}))


def _version(tensor: torch.Tensor) -> int | None:
    """Return a number that changes with a tensor's contents; None for an inference tensor, which tells of no change."""
    return None if tensor.is_inference() else tensor._version


def _plain(index: Any) -> Any:
    """Return an index with positions in the place of masks, which is what indexing makes of masks itself."""
    if isinstance(index, ForegroundMask):
        return index.positions()
    if isinstance(index, tuple) and any(isinstance(part, ForegroundMask) for part in index):
        parts = [part.positions() if isinstance(part, ForegroundMask) else (part,) for part in index]
        return tuple(entry for part in parts for entry in part)
    return index


def _getitem(tensor: torch.Tensor, index: Any) -> Any:
    if isinstance(tensor, ForegroundMask):
        return tensor.rows()[index] if type(index) is int and tensor.dim() == 2 else None
    return tensor[_plain(index)]


def _setitem(tensor: torch.Tensor, index: Any, value: Any) -> Any:
    tensor[_plain(index)] = value
    return _NOTHING


def _nonzero(mask: Any, *, as_tuple: bool = False) -> Any:
    return mask.positions() if as_tuple and isinstance(mask, ForegroundMask) else None


def _any(mask: Any, *args: Any, **kwargs: Any) -> Any:
    return torch.tensor(mask.count() > 0) if isinstance(mask, ForegroundMask) and not (args or kwargs) else None


def _sum(mask: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(mask, ForegroundMask) or args or kwargs:
        return None
    number: _KnownNumber = mask.sum().as_subclass(_KnownNumber)  # type: ignore[no-untyped-call]
    number.value = mask.count()
    return number


def _unbind(mask: Any, dim: int = 0) -> Any:
    return tuple(mask.rows()) if isinstance(mask, ForegroundMask) and dim == 0 and mask.dim() == 2 else None


_NOTHING = object()  # what `tensor[index] = value` is worth
_ANSWERS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.__getitem__: _getitem,
    torch.Tensor.__setitem__: _setitem,
    torch.Tensor.nonzero: _nonzero,
    torch.nonzero: _nonzero,
    torch.Tensor.any: _any,
    torch.any: _any,
    torch.Tensor.sum: _sum,
    torch.sum: _sum,
    torch.Tensor.unbind: _unbind,
    torch.unbind: _unbind,
}


@patch(
    "ultralytics.utils.tal:TaskAlignedAssigner.forward",
    why="losses index with the mask of foreground anchors many times over, with a sync for its positions each time",
    source="ultralytics/utils/loss.py",
)
def forward(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Assign targets to anchors, with a foreground that remembers its positions."""
    return tuple(
        ForegroundMask.of(part) if part.dtype is torch.bool and part.device.type == "xpu" else part
        for part in original(self, *args, **kwargs)
    )


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Find the foreground once a step."""
    return [forward] if trainer.xpu.options[FOREGROUND_ONCE] else []
