"""The last resort: a policy of ours that fails in a way nobody foresaw is switched off, and the run goes on.

That happens in the first batch and in the first validation. Later errors end a run, as errors of devices, of memory and
of users' code always do.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import torch

from .device_errors import is_of_device
from .errors import XPUTrainerError
from .options import Option
from .patches import Patch

__all__ = ["ISSUES", "STRICT", "Recovery"]

_LOGGER = logging.getLogger("ultralytics")

ISSUES = "https://github.com/yolo-xpu-trainer/yolo-xpu-trainer/issues"
STRICT = Option(
    "strict",
    False,
    "an error in a built-in policy ends the run, instead of switching the policy off for the rest of it",
    modes="all",
)
_PACKAGE = __name__.partition(".")[0]
_LOOKUPS = {"__getitem__", "__getattr__", "__getattribute__", "__missing__"}
_POLICIES = f"{_PACKAGE}.policies."


class Recovery:
    """Which policies were switched off because they failed, in a run or in a process.

    Args:
        strict: Asked when a policy fails: whether its error is raised.
    """

    def __init__(self, strict: Callable[[], bool] = STRICT.current) -> None:
        self.off: frozenset[str] = frozenset()
        self._strict = strict
        self._worked: set[tuple[str, bool]] = set()

    def trusts(self, what: str) -> bool:
        """Whether a hook or a patch, by name, has worked already: with gradients in training, without in validation."""
        return (what, torch.is_grad_enabled()) in self._worked

    def trust(self, what: str) -> None:
        """Note that a hook or a patch has worked."""
        self._worked.add((what, torch.is_grad_enabled()))

    def gives_up(self, error: Exception) -> bool:
        """Switch off the policy that an error comes from, and say so.

        Args:
            error: What was raised.

        Returns:
            Whether that was done. Not where the innermost frame, but PyTorch's own, isn't this package's; nor where the
            error is one of a device, of memory, or one that the package raises for its user.
        """
        if isinstance(error, XPUTrainerError) or is_of_device(error):
            return False
        frame, policy = _origin(error)
        if not policy or policy in self.off or self._strict():
            return False
        assert frame is not None
        self.off |= {policy}
        place = f"{frame.f_globals['__name__'].removeprefix(_PACKAGE + '.')}, {frame.f_code.co_name}"
        _LOGGER.warning(
            f"XPU: the policy {policy!r} failed and is switched off; this goes on without it, perhaps slower: "
            f"{type(error).__name__}: {error} (in {place}). Please report it at {ISSUES}, with this line and what "
            f"`yolo-xpu doctor` prints. xpu_strict=True raises the error, xpu_plugins=-{policy} avoids it."
        )
        return True

    def repeating(self, call: Callable[[], Any]) -> Any:
        """Call something, and once more for every policy that fails in it and is switched off."""
        while True:
            try:
                return call()
            except Exception as error:
                if not self.gives_up(error):
                    raise

    def attempting(self, call: Callable[[], Any]) -> Any:
        """Call something of one policy; return None where that fails and is switched off."""
        try:
            return call()
        except Exception as error:
            if not self.gives_up(error):
                raise
            return None

    def guard(self, patch: Patch, replacement: Any, original: Any, fallback: Any) -> Any:
        """Return what calls a patch's replacement, and the fallback from the moment on that its policy failed.

        Args:
            patch: The patch; that of no policy isn't guarded.
            replacement: What stands in the original's place.
            original: What it replaces.
            fallback: What is called, once the policy failed, instead of the replacement.
        """
        if not patch.policy:
            return replacement
        if isinstance(original, ModuleType):
            return _switched(lambda: fallback if patch.policy in self.off else replacement, original.__name__)

        @functools.wraps(original)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self._choose(patch.policy, patch.target, replacement, fallback, args, kwargs)

        return guarded

    def guarded(self, function: Callable[..., Any], instead: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Return what calls a function of a policy that somebody else will call: a callback, or a hook of PyTorch's.

        Args:
            function: The function.
            instead: What is called with the same arguments, once the policy failed; by default nothing is.
        """

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self.calling(function, *args, instead=instead, **kwargs)

        return guarded

    def calling(
        self, function: Callable[..., Any], *args: Any, instead: Callable[..., Any] | None = None, **kwargs: Any
    ) -> Any:
        """Call a function of a policy where no hook and no patch surrounds it, such as in a descriptor.

        Args:
            function: The function.
            *args: Its arguments.
            instead: What is called with the same arguments, once the policy failed; by default the answer is None.
            **kwargs: Its arguments.
        """
        policy = _policy_in(function.__module__)
        what = f"{function.__module__}:{function.__qualname__}"
        return self._choose(policy, what, function, instead or _nothing, args, kwargs)

    def _choose(
        self,
        policy: str,
        what: str,
        ours: Callable[..., Any],
        instead: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call what is ours, or what is called instead of it once its policy failed."""
        if policy in self.off:
            return instead(*args, **kwargs)
        if self.trusts(what):
            return ours(*args, **kwargs)
        try:
            result = ours(*args, **kwargs)
        except Exception as error:
            if not self.gives_up(error):
                raise
            return instead(*args, **kwargs)
        self.trust(what)
        return result


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand for a function of a policy that is off."""


def _switched(choose: Callable[[], Any], name: str) -> ModuleType:
    """Return a stand-in for a module that is, at every use, the one that is chosen."""

    class Switched(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            return getattr(choose(), name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(choose(), name, value)

    return Switched(name)


def _origin(error: BaseException) -> tuple[FrameType | None, str]:
    """Return the frame that an error comes from, but for PyTorch's, and the policy that it belongs to, or ""."""
    frames = [frame for frame in _frames(error) if _root(frame) != "torch"]
    if isinstance(error, (LookupError, AttributeError)):  # what isn't there was the caller's question
        while frames and frames[-1].f_code.co_name in _LOOKUPS:
            frames.pop()
    if not frames or _root(frames[-1]) != _PACKAGE:
        return None, ""
    names = [str(frame.f_globals.get("__name__", "")) for frame in reversed(frames)]
    return frames[-1], next(filter(None, map(_policy_in, names)), "")


def _policy_in(module: str) -> str:
    """Return the policy that a module belongs to, "" where there is none."""
    return module.removeprefix(_POLICIES).partition(".")[0] if module.startswith(_POLICIES) else ""


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of an error's traceback, from the outermost to the innermost."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _root(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
