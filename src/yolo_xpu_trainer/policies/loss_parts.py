"""A loss is made of its parts at the end, not written part by part into a vector of zeros.

Ultralytics' losses begin with a vector of zeros, write each part into it, multiply it there by its gain, and add up.
Autograd goes back through every write to a vector by copying the gradient of all of it, in five kernels or more: some
40 a step of a YOLO11n, and twice as many where there are two losses. Kept apart and joined when the vector is first
read, the parts come to the same numbers, and so do their gradients. Users' own losses get the vector.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch

from ..criterion import is_ultralytics
from ..hookspecs import hookimpl
from ..options import Option
from ..patches import Patch, like, patch, stand_in
from ..run import Run, StashKey

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
    that the parts make, which it is from then on.
    """

    computes_itself = True
    _parts: list[torch.Tensor]
    _versions: list[int | None]  # of the parts' contents, which would be copies in a vector
    _is_apart: bool = True
    _whole: torch.Tensor | None = None  # as it was when it was last read
    _whole_at: int | None = None  # its version then
    _is_shared: bool = False  # whether somebody has a tensor of the same memory

    @classmethod
    def of_zeros(cls, zeros: torch.Tensor) -> LossParts:
        """Return a vector of parts.

        Args:
            zeros: A vector of zeros, which stays as it is.
        """
        made: LossParts = zeros.as_subclass(cls)  # type: ignore[no-untyped-call]
        made._parts = list(zeros.unbind())
        made._versions = [None] * len(made._parts)
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Write or read a part, or read all; everything else is done with the vector that they make."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            vector = args[0] if args else None
            if type(vector) is cls and vector._stays_apart() and not kwargs:
                if func in _OF_ZEROS:
                    return func(vector)
                if func is torch.Tensor.__getitem__ and vector._has(args[1]):
                    return _Number.at(vector, args[1])
                if func is torch.Tensor.__setitem__ and vector._has(args[1]) and vector._takes(args[1], args[2]):
                    return vector._put(args[1], _written(args[2]))
                if func in _READS:
                    vector._is_shared |= func is torch.Tensor.detach
                    return func(vector._joined(), *map(_plain, args[1:]))
            return func(*map(_plain, args), **{key: _plain(value) for key, value in kwargs.items()})

    def _stays_apart(self) -> bool:
        """Whether its parts are still what it is: nobody has changed what was read of it."""
        if self._is_apart and self._whole is not None and _version(self._whole) != self._whole_at:
            self._is_apart = False
        return self._is_apart

    def _has(self, index: Any) -> bool:
        return type(index) is int and -len(self._parts) <= index < len(self._parts)

    def _takes(self, index: int, value: Any) -> bool:
        """Whether a value can be a part: one number on the device, with nothing lost that autograd would go through."""
        if not isinstance(value, torch.Tensor) or type(value) is LossParts:
            return False
        if value.dim() or not value.is_floating_point() or value.device != self._parts[0].device:
            return False
        is_itself = type(value) is _Number and value._of is self and value._index == index % len(self._parts)
        return self._can_change(index, value) and (is_itself or not self._parts[index].requires_grad)

    def _can_change(self, index: int, value: torch.Tensor) -> bool:
        if self._is_shared:
            return False
        return torch.is_grad_enabled() or not (value.requires_grad or self._parts[index].requires_grad)

    def _put(self, index: int, value: torch.Tensor) -> None:
        self._parts[index] = value.to(torch.float32)
        self._versions[index] = _version(self._parts[index])
        self._whole = None

    def _part(self, index: int) -> torch.Tensor:
        """Return a part.

        Raises:
            RuntimeError: It was changed after it was written, which a vector would not notice.
        """
        part, at = self._parts[index], self._versions[index]
        if at is not None and _version(part) != at:
            raise RuntimeError("a part of a loss was changed after it was written")
        return part

    def _joined(self) -> torch.Tensor:
        """Return the vector, for reading."""
        if self._whole is None:
            parts = [self._part(index) for index in range(len(self._parts))]
            with torch.inference_mode(False), torch.enable_grad():  # what reads it later may want gradients
                self._whole = torch.stack(parts)
            self._whole_at = _version(self._whole)
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
        made._of, made._index = vector, index % len(vector._parts)
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute with the number; everything else is done with a view of the vector."""
        kwargs = kwargs or {}
        if LossParts in types:
            return LossParts.__torch_function__(func, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if len(args) == 2 and not kwargs and all(map(_is_one, args)):
                if func in _COMPUTED:
                    return func(*map(_value, args))
                number, compute = args[0], _CHANGED.get(func)
                if (
                    compute is not None
                    and type(number) is cls
                    and type(args[1]) is not cls
                    and number._of._stays_apart()
                ):
                    changed = compute(number._of._part(number._index), _value(args[1]))
                    if number._of._can_change(number._index, changed):
                        number._of._put(number._index, changed)
                        return number
            return func(*map(_plain, args), **{key: _plain(value) for key, value in kwargs.items()})

    def _now(self) -> torch.Tensor:
        """Return the number, to be read: of the vector, if that has a gradient that the number hasn't."""
        vector, part = self._of, self._of._part(self._index)
        has_its_own = part.requires_grad or not any(other.requires_grad for other in vector._parts)
        return part if vector._stays_apart() and has_its_own else vector._vector()[self._index]


_OF_ZEROS = {
    torch.Tensor.device.__get__,  # type: ignore[attr-defined]
    torch.Tensor.dtype.__get__,  # type: ignore[attr-defined]
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
    torch.Tensor.__len__,
}
_READS = {
    torch.Tensor.mul,
    torch.Tensor.__mul__,
    torch.Tensor.__rmul__,
    torch.Tensor.sum,
    torch.Tensor.detach,
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


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _is_one(value: Any) -> bool:
    """Whether a value is one real number, in a tensor or not."""
    if isinstance(value, torch.Tensor):
        return type(value) is not LossParts and value.dim() == 0 and value.is_floating_point()
    return type(value) in (int, float)


def _written(value: Any) -> Any:
    """Return the part that a number of a vector is, and everything else as it is."""
    if type(value) is not _Number or not value._of._stays_apart():
        return _value(value)
    return value._of._part(value._index)


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


_IN_LOSS = StashKey[bool]()
"""Whether a loss is being computed that is all Ultralytics'."""


@patch(
    "ultralytics.nn.tasks:BaseModel.loss",
    why="each part of a loss is written into one vector, through which autograd goes back in five kernels a write",
    source="ultralytics/utils/loss.py",
)
def loss(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute a loss, of Ultralytics' own parts if it is Ultralytics' own."""
    before = run.stash.get(_IN_LOSS, False)
    run.stash[_IN_LOSS] = is_ultralytics(run, self)
    try:
        return original(self, *args, **kwargs)
    finally:
        run.stash[_IN_LOSS] = before


@stand_in(
    "ultralytics.utils.loss:torch",
    why="the vector that a loss begins with would be one",
    everywhere=False,
)
def torch_of_losses(run: Run, original: Any) -> Any:
    """Return a stand-in for the module `torch`, whose `zeros` of a loss is a vector of parts."""

    @functools.wraps(original.zeros)
    def zeros(*size: Any, **kwargs: Any) -> Any:
        made = original.zeros(*size, **kwargs)
        is_loss = len(size) == 1 and type(size[0]) is int and 1 < size[0] <= _MOST and kwargs.keys() == {"device"}
        if not is_loss or not run.stash.get(_IN_LOSS, False):
            return made
        is_on_device = made.device.type == "xpu" and made.dtype is torch.float32
        return LossParts.of_zeros(made) if is_on_device else made

    return like(original, zeros=zeros)


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Keep the parts of a loss apart until they are added up; a compiler, which has a vector anyway, gets one."""
    arguments = getattr(trainer, "args", None)  # doctor asks without a training
    if not trainer.xpu.options[LOSS_PARTS] or getattr(arguments, "compile", False):
        return []
    return [loss, torch_of_losses]
