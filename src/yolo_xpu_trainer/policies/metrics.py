"""Validation's metrics are computed on the host, from one copy a batch.

Ultralytics matches each image's few boxes to its labels on the device, with six syncs an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..patches import patch
from ..transfer import to_host

__all__ = ["PATCHES"]

HOST_METRICS = Option(
    "host_metrics", True, "validation's metrics are computed on the host, from one copy a batch", modes="all"
)
_LABELS = ("batch_idx", "cls", "bboxes", "keypoints")
_LARGE = "masks"  # compared on the device


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [HOST_METRICS]


@patch(
    "ultralytics.models.yolo.detect.val:DetectionValidator.update_metrics",
    why="it compares each image's boxes with its labels on the device, with six syncs an image",
)
def update_metrics(original: Callable[..., Any], self: Any, preds: Any, batch: dict[str, Any]) -> Any:
    """Update the metrics with predictions and labels that were copied to the host together."""
    args = self.args
    on_xpu = getattr(self.device, "type", "") == "xpu"
    with_masks = any(isinstance(p, dict) and _LARGE in p for p in preds)
    wants_files = any(getattr(args, name, False) for name in ("save_json", "save_txt", "visualize"))
    on_device = not HOST_METRICS.current() or (with_masks and wants_files)
    if not on_xpu or not isinstance(preds, list) or on_device:
        return original(self, preds, batch)
    places: list[tuple[Any, Any]] = []
    of_host = [dict(p) if isinstance(p, dict) else p for p in preds]
    labels = dict(batch)
    for i, pred in enumerate(of_host):
        places += [(pred, key) for key in pred if key != _LARGE] if isinstance(pred, dict) else [(of_host, i)]
    places += [(labels, key) for key in _LABELS if key in labels]
    places = [(holder, key) for holder, key in places if isinstance(holder[key], torch.Tensor)]
    for (holder, key), copied in zip(places, to_host([holder[key] for holder, key in places]), strict=True):
        holder[key] = copied
    device, self.device = self.device, torch.device("cpu")
    try:
        return original(self, of_host, labels)
    finally:
        self.device = device


@patch(
    "ultralytics.engine.validator:BaseValidator.match_predictions", why="it expects classes and overlaps on one device"
)
def match_predictions(
    original: Callable[..., Any],
    self: Any,
    pred_classes: torch.Tensor,
    true_classes: torch.Tensor,
    iou: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Match predictions to labels where their classes are; what masks have in common comes from the device."""
    return original(self, pred_classes, true_classes, iou.to(pred_classes.device), *args, **kwargs)


PATCHES = [update_metrics, match_predictions]
