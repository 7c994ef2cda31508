"""A loss is made of its parts at the end, not written part by part into a vector of zeros.

Ultralytics' losses begin with a vector of zeros, write each part into it, multiply it there by its gain, and add up.
Autograd goes back through every write to a vector by copying the gradient of all of it, in five kernels or more: some
40 a step of a YOLO11n, and twice as many where there are two losses. Kept apart and joined when the vector is first
read, the parts come to the same numbers, and so do their gradients.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..patches import Patch, like, stand_in

__all__ = ["LossParts"]

_MOST = 8  # parts of a loss: YOLO26's of poses has six

LOSS_PARTS = Option(
    "loss_parts",
    True,
    "a loss's parts are joined at its end, instead of written into a vector one by one",
    measured=(False,),
)


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [LOSS_PARTS]


class LossParts(torch.Tensor):
    """A vector of zeros whose numbers are written one by one, each a tensor of its own until something else is done.

    Whatever is done with it but writing single numbers, reading them, and reading it whole, is done with the vector
    that the parts make, which it is from then on. A tensor that was written may not change before, as none does in
    Ultralytics' losses.
    """

    computes_itself = True
    _parts: list[torch.Tensor]
    _whole: torch.Tensor | None = None  # as it was when it was last read
    _is_apart: bool = True

    @classmethod
    def of_zeros(cls, zeros: torch.Tensor) -> LossParts:
        """Return a vector of parts.

        Args:
            zeros: A vector of zeros, which stays as it is.
        """
        made: LossParts = zeros.as_subclass(cls)  # type: ignore[no-untyped-call]
        made._parts = list(zeros.unbind())
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Write or read a part, or read all; everything else is done with the vector that they make."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            vector = args[0] if args else None
            if type(vector) is cls and vector._is_apart:
                if func is torch.Tensor.__getitem__ and vector._has(args[1]):
                    return _Number.at(vector, args[1])
                if func is torch.Tensor.__setitem__ and vector._has(args[1]) and vector._takes(args[2]):
                    return vector._put(args[1], _value(args[2]))
                if func in _READS:
                    return func(vector._joined(), *map(_plain, args[1:]), **kwargs)
            return func(*map(_plain, args), **{key: _plain(value) for key, value in kwargs.items()})

    def _has(self, index: Any) -> bool:
        return type(index) is int and -len(self._parts) <= index < len(self._parts)

    def _takes(self, value: Any) -> bool:
        """Whether a value is one number in a tensor on the device."""
        return (
            isinstance(value, torch.Tensor)
            and type(value) is not LossParts
            and value.dim() == 0
            and value.is_floating_point()
            and value.device == self._parts[0].device
        )

    def _put(self, index: int, value: torch.Tensor) -> None:
        self._parts[index] = value.to(torch.float32)
        self._whole = None

    def _joined(self) -> torch.Tensor:
        if self._whole is None:
            self._whole = torch.stack(self._parts)
        return self._whole

    def _vector(self) -> torch.Tensor:
        """Return the vector that it is from now on."""
        whole, self._is_apart = self._joined(), False
        return whole


class _Number(torch.Tensor):
    """One number of such a vector: a view of it, as soon as it is more than computed with."""

    computes_itself = True
    _of: LossParts
    _index: int

    @classmethod
    def at(cls, vector: LossParts, index: int) -> _Number:
        made: _Number = vector._parts[index].as_subclass(cls)  # type: ignore[no-untyped-call]
        made._of, made._index = vector, index
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute with the number; everything else is done with a view of the vector."""
        kwargs = kwargs or {}
        if LossParts in types:
            return LossParts.__torch_function__(func, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            number = args[0] if args else None
            if len(args) == 2 and not kwargs and all(map(_is_one, args)):
                if func in _COMPUTED:
                    return func(*map(_value, args))
                compute = _CHANGED.get(func)
                if compute is not None and type(number) is cls and number._of._is_apart:
                    number._of._put(number._index, compute(*map(_value, args)))
                    return number
            return func(*map(_plain, args), **{key: _plain(value) for key, value in kwargs.items()})

    def _now(self) -> torch.Tensor:
        """Return the number, to be read."""
        return self._of._parts[self._index] if self._of._is_apart else self._of._vector()[self._index]


_READS = {
    torch.Tensor.mul,
    torch.Tensor.__mul__,
    torch.Tensor.__rmul__,
    torch.Tensor.sum,
    torch.Tensor.detach,
    torch.sum,
    torch.mul,
}
_COMPUTED = {torch.Tensor.add, torch.Tensor.sub, torch.Tensor.mul, torch.Tensor.div}
_COMPUTED |= {torch.Tensor.__add__, torch.Tensor.__sub__, torch.Tensor.__mul__, torch.Tensor.__truediv__}
_CHANGED: dict[Any, Callable[[Any, Any], Any]] = {
    torch.Tensor.mul_: operator.mul,
    torch.Tensor.add_: operator.add,
    torch.Tensor.sub_: operator.sub,
    torch.Tensor.div_: operator.truediv,
    torch.Tensor.__imul__: operator.mul,
    torch.Tensor.__iadd__: operator.add,
    torch.Tensor.__isub__: operator.sub,
    torch.Tensor.__itruediv__: operator.truediv,
}


def _is_one(value: Any) -> bool:
    """Whether a value is one real number, in a tensor or not."""
    if isinstance(value, torch.Tensor):
        return type(value) is not LossParts and value.dim() == 0 and value.is_floating_point()
    return type(value) in (int, float)


def _value(value: Any) -> Any:
    """Return what a number of a vector is now, to be read, and everything else as it is."""
    return value._now() if type(value) is _Number else value


def _plain(value: Any) -> Any:
    """Return the vector that parts make, and the view of it that one of its numbers is; and all else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if type(value) is LossParts:
        return value._vector()
    return value._of._vector()[value._index] if type(value) is _Number else value


@stand_in(
    "ultralytics.utils.loss:torch",
    why="each part of a loss is written into one vector, through which autograd goes back in five kernels a write",
    everywhere=False,
)
def torch_of_losses(run: Any, original: Any) -> Any:
    """Return a stand-in for the module `torch`, whose `zeros` of a loss is a vector of parts."""

    @functools.wraps(original.zeros)
    def zeros(*size: Any, **kwargs: Any) -> Any:
        made = original.zeros(*size, **kwargs)
        is_loss = len(size) == 1 and type(size[0]) is int and 1 < size[0] <= _MOST and kwargs.keys() == {"device"}
        if not is_loss or made.device.type != "xpu" or made.dtype is not torch.float32 or torch.compiler.is_compiling():
            return made
        return LossParts.of_zeros(made)

    return like(original, zeros=zeros)


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Keep the parts of a loss apart until they are added up."""
    return [torch_of_losses] if trainer.xpu.options[LOSS_PARTS] else []
