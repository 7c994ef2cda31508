"""The keypoints that YOLO26's loss takes are found once, not at every use.

Its residual log-likelihood indexes with the mask of visible keypoints three times and with that of finite errors three
times, forwards and backwards, and asks whether there are any: eleven syncs a loss, of which there are two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ...known_tensors import KnownTensor, PlainError
from ...own_code import says
from ...patches import TargetMovedError, like, patch, stand_in
from ...run import Run, StashKey
from .mask import known_mask

__all__ = ["calculate_rle_loss", "torch_of_losses"]

_VALID = "valid_mask = ~(torch.isnan(error) | torch.isinf(error)).any(dim=-1)"
_IN_LOSS = StashKey[bool]()
"""Whether that loss is being computed."""


class _Flawed(KnownTensor):
    """Which errors aren't finite; on the way to a mask of those that are."""

    _run: Run | None = None


def _or(func: Any, args: Any, kwargs: Any) -> Any:
    one, other = args
    if kwargs or type(one) is not _Flawed or not isinstance(other, torch.Tensor):
        raise PlainError
    return _flawed(func(one, other), one._run)


def _any(func: Any, args: Any, kwargs: Any) -> Any:
    if args[1:] or kwargs != {"dim": -1}:
        raise PlainError
    return _flawed(func(*args, **kwargs), args[0]._run)


def _invert(func: Any, args: Any, kwargs: Any) -> Any:
    (flawed,) = args
    return known_mask(func(flawed), run=flawed._run)


_Flawed.answers = {torch.Tensor.__or__: _or, torch.Tensor.any: _any, torch.Tensor.__invert__: _invert}


def _flawed(mask: torch.Tensor, run: Run | None) -> torch.Tensor:
    known: _Flawed = mask.as_subclass(_Flawed)  # type: ignore[no-untyped-call]
    known._run = run
    return known


@patch(
    "ultralytics.utils.loss:PoseLoss26.calculate_rle_loss",
    why="it indexes with two masks, six times, with a sync for the positions in them each time",
    needed=says(_VALID),
    optional=True,
)
def calculate_rle_loss(
    run: Run, original: Callable[..., Any], self: Any, pred_kpt: Any, gt_kpt: Any, kpt_mask: Any, *args: Any
) -> Any:
    """Compute the loss with masks that remember their positions."""
    if type(kpt_mask) is not torch.Tensor or kpt_mask.device.type != "xpu":
        return original(self, pred_kpt, gt_kpt, kpt_mask, *args)
    run.stash[_IN_LOSS] = True
    try:
        return original(self, pred_kpt, gt_kpt, known_mask(kpt_mask, run=run), *args)
    finally:
        run.stash[_IN_LOSS] = False


def _is_asked() -> bool:
    try:
        return calculate_rle_loss.is_needed()
    except TargetMovedError:
        return False  # there is no such loss before 8.4


@stand_in(
    "ultralytics.utils.loss:torch",
    why="the mask of finite errors, made of `isnan` in that loss, would be looked through anew at each use",
    everywhere=False,
    needed=lambda original: _is_asked(),
)
def torch_of_losses(run: Run, original: Any) -> Any:
    """Return a stand-in for the module `torch`, whose `isnan` says in that loss what it is of."""

    @functools.wraps(original.isnan)
    def isnan(*args: Any, **kwargs: Any) -> Any:
        found = original.isnan(*args, **kwargs)
        return _flawed(found, run) if run.stash.get(_IN_LOSS, False) and type(found) is torch.Tensor else found

    return like(original, isnan=isnan)
