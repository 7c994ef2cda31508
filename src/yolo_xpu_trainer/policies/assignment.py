"""An older Ultralytics assigns labels to anchors without asking the device, as its later releases do.

Before 8.4.120 or so it asks whether an anchor is assigned to several labels, and before 8.4.100 or so it brings the
labels' classes to the host to index with them: a sync a step each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..known_tensors import Answer, KnownTensor, PlainError
from ..own_code import says
from ..patches import Patch, like, patch, stand_in
from ..run import Run, StashKey

__all__: list[str] = []


class _Most(KnownTensor):
    """To how many labels an anchor is assigned at most: to several, whatever the device knows."""


class _Labels(KnownTensor):
    """To how many labels each anchor is assigned."""


class _Assigned(KnownTensor):
    """Which anchors are assigned to which labels."""


def _as(kind: type[KnownTensor], *others: Any) -> Answer:
    """Return an answer of another kind to a call with these arguments."""

    def answer(func: Any, args: Any, kwargs: Any) -> Any:
        if kwargs or args[1:] != others:
            raise PlainError
        return func(*args).as_subclass(kind)

    return answer


def _more_than_one(func: Any, args: Any, kwargs: Any) -> bool:
    if kwargs or args[1:] != (1,):
        raise PlainError
    return True


_Most.answers = {torch.Tensor.gt: _more_than_one}
_Labels.answers = {torch.Tensor.max: _as(_Most)}
_Assigned.answers = {torch.Tensor.sum: _as(_Labels, -2)}


@patch(
    "ultralytics.utils.tal:TaskAlignedAssigner.select_highest_overlaps",
    why="it asks the device, with a sync, whether an anchor is assigned to several labels",
    needed=says("if fg_mask.max() > 1:"),
)
def select_highest_overlaps(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let each anchor keep its best label, also where none has several, for whom that changes nothing."""
    at = next((i for i, value in enumerate(args) if isinstance(value, torch.Tensor)), None)  # it was a static method
    if at is None or type(args[at]) is not torch.Tensor or args[at].device.type != "xpu":
        return original(*args, **kwargs)
    return original(*args[:at], args[at].as_subclass(_Assigned), *args[at + 1 :], **kwargs)


_DEVICE = StashKey["torch.device | None"]()
"""Where the boxes are that are being assigned."""


@patch(
    "ultralytics.utils.tal:TaskAlignedAssigner.get_box_metrics",
    why="it brings the labels' classes to the host, with a sync, and back",
    needed=says("torch.zeros([2, self.bs, self.n_max_boxes], dtype=torch.long)"),
)
def get_box_metrics(
    run: Run, original: Callable[..., Any], self: Any, pd_scores: Any, *args: Any, **kwargs: Any
) -> Any:
    """Compute how well anchors and labels go together, with indices that are made where the boxes are."""
    run.stash[_DEVICE] = getattr(pd_scores, "device", None)
    try:
        return original(self, pd_scores, *args, **kwargs)
    finally:
        run.stash[_DEVICE] = None


@stand_in(
    "ultralytics.utils.tal:torch",
    why="it would make the indices of the labels' classes on the host",
    everywhere=False,
    needed=lambda original: get_box_metrics.is_needed(),
)
def torch_of_assigner(run: Run, original: Any) -> Any:
    """Return a stand-in for the module `torch`, whose `zeros` makes those indices where the boxes are."""

    @functools.wraps(original.zeros)
    def zeros(*size: Any, **kwargs: Any) -> Any:
        device = run.stash.get(_DEVICE, None)
        is_indices = len(size) == 1 and isinstance(size[0], list) and size[0][:1] == [2] and len(size[0]) == 3
        if device is not None and is_indices and kwargs == {"dtype": torch.long}:
            kwargs["device"] = device
        return original.zeros(*size, **kwargs)

    return like(original, zeros=zeros)


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Leave the device unasked, where this version of Ultralytics asks it."""
    return [select_highest_overlaps, get_box_metrics, torch_of_assigner]
