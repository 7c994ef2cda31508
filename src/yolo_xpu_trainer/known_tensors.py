"""Tensors on the device of whose contents something is known, and that are plain ones to all other code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

__all__ = ["Answer", "KnownTensor", "PlainError", "plain"]

Answer = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Called with PyTorch's function, its arguments and its keyword arguments, while subclasses are plain tensors."""


class PlainError(Exception):
    """An answer isn't known, or the call is of another form than is known of: a plain tensor is asked."""


class KnownTensor(torch.Tensor):
    """A tensor that answers some calls from what is known of its contents.

    Copies of it, and what is computed from it, are plain tensors. Its contents are known as long as its version is what
    it was when they became known: a version changes with the contents, whichever tensor of the same memory they are
    changed by. Where one of a class with `computes_itself` is computed with, that class is asked.

    Attributes:
        answers: What answers which of PyTorch's functions.
    """

    answers: ClassVar[dict[Any, Answer]] = {}
    _at: int | None = None  # the version; None where nothing is known

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer from what is known, or leave it to the plain tensor."""
        if any(getattr(kind, "computes_itself", False) for kind in types):
            return NotImplemented
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            answer = cls.answers.get(func) or _OF_ALL.get(func)
            if answer is not None and args and not _is_transformed():
                try:
                    return answer(func, args, kwargs)
                except PlainError:
                    pass
            return func(*args, **kwargs)

    def __copy__(self) -> torch.Tensor:
        return plain(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        there = plain(self)
        memo.setdefault(id(memo), []).append(there)  # the memo goes by identities, which must not be given again
        memo[id(self)] = copied = there.__deepcopy__(memo)  # type: ignore[no-untyped-call]
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def is_valid(self) -> bool:
        """Whether the contents are what they were when they became known."""
        return self._at is not None and self._at == self._version

    def forget(self) -> None:
        """Know nothing any more."""
        self._at = None


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a plain tensor of the same memory and version."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)  # type: ignore[no-untyped-call,no-any-return]


def _is_transformed() -> bool:
    """Whether PyTorch's compiler or one of `torch.func` computes with other tensors than there are."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def _detach(func: Any, args: Any, kwargs: Any) -> Any:
    """Return a detached tensor of the same class, without which no `torch.nn.Parameter` is made from one."""
    detached = func(*args, **kwargs)
    return detached.as_subclass(type(args[0])) if isinstance(args[0], KnownTensor) else detached


def _show(func: Any, args: Any, kwargs: Any) -> Any:
    """Show a tensor as what it is to everybody else."""
    tensor, *others = args
    return func(plain(tensor), *others, **kwargs)


def _expose(func: Any, args: Any, kwargs: Any) -> Any:
    """Forget what is known: what is changed by way of such a view changes no version."""
    if isinstance(args[0], KnownTensor):
        args[0].forget()
    return func(*args, **kwargs)


_OF_ALL: dict[Any, Answer] = {
    torch.Tensor.detach: _detach,
    torch.Tensor.__repr__: _show,
    torch.Tensor.__format__: _show,
    torch.Tensor.data.__get__: _expose,  # type: ignore[attr-defined]
    torch.Tensor.data.__set__: _expose,  # type: ignore[attr-defined]
    torch.Tensor.set_: _expose,
    torch.Tensor.untyped_storage: _expose,
    torch.Tensor.__dlpack__: _expose,
}
