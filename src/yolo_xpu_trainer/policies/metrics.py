"""Validation's metrics are computed on the host, from one copy a batch.

Ultralytics matches each image's few boxes to its labels on the device, with six syncs an image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..patches import patch
from ..transfer import to_host

__all__ = ["PATCHES"]

_LOGGER = logging.getLogger("ultralytics")

HOST_METRICS = Option(
    "host_metrics", True, "validation's metrics are computed on the host, from one copy a batch", modes="all"
)
_LABELS = ("batch_idx", "cls", "bboxes", "keypoints")
_PREDICTED = ("bboxes", "conf", "cls", "extra", "keypoints")
_LARGE = "masks"  # compared on the device

# What `update_metrics` calls: methods of the validator, and of what it holds.
_METHODS = (
    "_prepare_batch",
    "_prepare_pred",
    "_process_batch",
    "match_predictions",
    "scale_preds",
    "pred_to_json",
    "save_one_txt",
)
_HELD = ("metrics", "confusion_matrix")
_PACKAGES = ("ultralytics", __name__.partition(".")[0])
_told: set[type] = set()


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [HOST_METRICS]


@patch(
    "ultralytics.models.yolo.detect.val:DetectionValidator.update_metrics",
    why="it compares each image's boxes with its labels on the device, with six syncs an image",
)
def update_metrics(original: Callable[..., Any], self: Any, preds: Any, batch: dict[str, Any]) -> Any:
    """Update the metrics with predictions and labels that were copied to the host together."""
    if getattr(self.device, "type", "") != "xpu" or not HOST_METRICS.current() or not _applies(self, preds, batch):
        return original(self, preds, batch)
    of_host: list[Any] = [dict(pred) if isinstance(pred, dict) else pred for pred in preds]
    labels = dict(batch)
    places: list[tuple[Any, Any]] = [(labels, key) for key in _LABELS]
    for i, pred in enumerate(of_host):
        places += [(pred, key) for key in _PREDICTED] if isinstance(pred, dict) else [(of_host, i)]
    places = [(holder, key) for holder, key in places if isinstance(_get(holder, key), torch.Tensor)]
    for (holder, key), copied in zip(places, to_host([holder[key] for holder, key in places]), strict=True):
        holder[key] = copied
    device, self.device = self.device, torch.device("cpu")
    try:
        result = original(self, of_host, labels)
    finally:
        self.device = device
    if self.args.single_cls:  # then Ultralytics sets the predictions' classes to 0, which are drawn later
        for pred, copied in zip(preds, of_host, strict=True):
            if isinstance(pred, dict) and "cls" in pred:
                pred["cls"].copy_(copied["cls"])
    return result


def _get(holder: Any, key: Any) -> Any:
    return holder.get(key) if isinstance(holder, dict) else holder[key]


def _applies(validator: Any, preds: Any, batch: Any) -> bool:
    """Whether predictions and labels are what Ultralytics makes of them, and nobody else's code would get them."""
    if type(preds) is not list or type(batch) is not dict:
        return False
    if not all(type(pred) is dict or isinstance(pred, torch.Tensor) for pred in preds):
        return False
    args = validator.args
    if any(_LARGE in pred for pred in preds if type(pred) is dict) and any(
        getattr(args, name, False) for name in ("save_json", "save_txt", "visualize")
    ):
        return False
    owns = _own_code(validator)
    if owns and type(validator) not in _told:
        _told.add(type(validator))
        _LOGGER.warning(
            f"XPU: {type(validator).__name__} has {' and '.join(owns)} of its own, which may expect tensors on the "
            "device, so that xpu_host_metrics is off for it. Validation waits for the GPU some six times an image."
        )
    return not owns


def _own_code(validator: Any) -> list[str]:
    """Return the names of what isn't Ultralytics' own among what updating the metrics calls."""
    functions = {name: getattr(validator, name, None) for name in _METHODS}
    own = [name for name, function in functions.items() if function is not None and not _is_upstream(function)]
    held = {name: getattr(validator, name, None) for name in _HELD}
    return own + [name for name, value in held.items() if value is not None and not _is_of(type(value).__module__)]


def _is_upstream(function: Any) -> bool:
    return _is_of(getattr(getattr(function, "__func__", function), "__globals__", {}).get("__name__", ""))


def _is_of(module: str) -> bool:
    return module.partition(".")[0] in _PACKAGES


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
