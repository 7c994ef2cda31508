"""The anchors that a loss calls foreground, and the keypoints that it takes: found once, not at every use.

Indexing with a boolean mask finds its positions anew, forwards and backwards, with a sync each time for their number;
so does asking whether there are any. A YOLO11n-seg's loss does so 24 times a step on 4 images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...hookspecs import hookimpl
from ...options import Option
from ...own_code import says
from ...patches import Patch, patch
from ...run import Run
from .keypoints import calculate_rle_loss, torch_of_losses
from .mask import known_mask, tracked

__all__: list[str] = []

FOREGROUND_ONCE = Option(
    "foreground_once", True, "the anchors that a loss calls foreground are found once a step", measured=(False,)
)


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [FOREGROUND_ONCE]


@patch(
    "ultralytics.utils.tal:TaskAlignedAssigner.forward",
    why="losses index with the mask of foreground anchors many times over, with a sync for its positions each time",
    source="ultralytics/utils/loss.py",
)
def forward(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Assign targets to anchors, with a foreground that remembers its positions."""
    assigned = original(self, *args, **kwargs)
    if type(assigned) is not tuple:
        return assigned
    return tuple(known_mask(tracked(part), run=run) if _is_mask(part) else part for part in assigned)


@patch(
    "ultralytics.utils.tal:TaskAlignedAssigner.get_box_metrics",
    why="before 8.4.120 or so it indexes with one mask five times, with a sync for its positions each time",
    needed=says("[mask_gt]"),
)
def get_box_metrics(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute how well anchors and labels go together, with a mask that remembers its positions."""
    *others, mask = args or (None,)  # the last one as Ultralytics calls it
    if kwargs or not isinstance(mask, torch.Tensor) or mask.device.type != "xpu":
        return original(self, *args, **kwargs)
    return original(self, *others, known_mask(tracked(mask.bool()), run=run))


def _is_mask(value: Any) -> bool:
    return type(value) is torch.Tensor and value.dtype is torch.bool and value.device.type == "xpu"


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Find the foreground and the keypoints once a step."""
    if not trainer.xpu.options[FOREGROUND_ONCE]:
        return []
    return [forward, get_box_metrics, calculate_rle_loss, torch_of_losses]
