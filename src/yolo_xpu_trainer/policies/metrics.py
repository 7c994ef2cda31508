"""Rows for a validator's metrics: they are reckoned on the host, from one copy a batch.

Ultralytics matches each image's few boxes to its labels on the device, and waits for it six times an image.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..options import Options
from ..transfer import to_host
from .rows import Row

__all__ = ["ROWS"]

_LABELS = ("batch_idx", "cls", "bboxes", "keypoints")
_LARGE = "masks"  # compared on the device


def _update_metrics(run: None, original: Any) -> Any:
    @functools.wraps(original)
    def update_metrics(self: Any, preds: Any, batch: dict[str, Any]) -> Any:
        """Update the metrics with predictions and labels that were copied to the host together."""
        args = self.args
        with_masks = any(isinstance(p, dict) and _LARGE in p for p in preds)
        wants_files = any(getattr(args, name, False) for name in ("save_json", "save_txt", "visualize"))
        stands_down = not Options.current().host_metrics or (with_masks and wants_files)
        if not _on_xpu(self.device) or not isinstance(preds, list) or stands_down:
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

    return update_metrics


def _match_predictions(run: None, original: Any) -> Any:
    @functools.wraps(original)
    def match_predictions(
        self: Any, pred_classes: torch.Tensor, true_classes: torch.Tensor, iou: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Match predictions to labels where their classes are; what masks have in common comes from the device."""
        return original(self, pred_classes, true_classes, iou.to(pred_classes.device), *args, **kwargs)

    return match_predictions


def _on_xpu(device: Any) -> bool:
    return getattr(device, "type", "") == "xpu"


ROWS = [
    Row(
        target="ultralytics.models.yolo.detect.val:DetectionValidator.update_metrics",
        why="it compares each image's boxes with its labels on the device, and waits for it six times an image",
        source="ultralytics/models/yolo/detect/val.py",
        needed=lambda run, original: True,
        replacement=_update_metrics,
        everywhere=False,
    ),
    Row(
        target="ultralytics.engine.validator:BaseValidator.match_predictions",
        why="it expects classes and overlaps on one device",
        source="ultralytics/engine/validator.py",
        needed=lambda run, original: True,
        replacement=_match_predictions,
        everywhere=False,
    ),
]
