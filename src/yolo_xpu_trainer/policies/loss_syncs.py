"""Rows for what a training step waits for, or copies to the device, though the host knew it all along."""

from __future__ import annotations

import functools
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import torch

from ..run import Run
from .rows import Row

__all__ = ["ROWS"]

_SHAPES_KEPT = 32  # multi_scale meets some 20 image sizes
_CONSTANTS_KEPT = 128


def _make_anchors(run: Run, original: Any) -> Any:
    kept: OrderedDict[Any, tuple[Any, Any]] = OrderedDict()

    @functools.wraps(original)
    def make_anchors(feats: Any, strides: Any, grid_cell_offset: float = 0.5) -> Any:
        """Return the anchors of these feature maps' shapes, computed once."""
        if not isinstance(feats, list) or feats[0].device.type != "xpu":
            return original(feats, strides, grid_cell_offset)
        shapes = tuple(f.shape[2:] for f in feats)
        key = (shapes, feats[0].dtype, feats[0].device, grid_cell_offset, id(strides))
        if key not in kept or kept[key][0] is not strides:
            with torch.inference_mode(False):  # a validation may come first, and its tensors can't be trained with
                kept[key] = strides, original(feats, strides, grid_cell_offset)
            if len(kept) > _SHAPES_KEPT:
                kept.popitem(last=False)
        return kept[key][1]

    return make_anchors


def _preprocess(run: Run, original: Any) -> Any:
    @functools.wraps(original)
    def preprocess(self: Any, targets: torch.Tensor, batch_size: int, scale_tensor: torch.Tensor) -> torch.Tensor:
        """Pad targets to as many an image as the host counted, rather than count them on the device and wait."""
        known = run.targets
        if known is None or known.total != targets.shape[0] or not known.total or targets.device.type != "xpu":
            return original(self, targets, batch_size, scale_tensor)  # type: ignore[no-any-return]
        from ultralytics.utils.ops import xywh2xyxy

        total, device = known.total, targets.device
        image = targets[:, 0].long()
        out = torch.zeros(batch_size, known.most, targets.shape[1] - 1, device=device)
        ends = torch.zeros(batch_size, dtype=torch.long, device=device).scatter_add_(0, image, torch.ones_like(image))
        ends = ends.cumsum(0)
        within = torch.arange(total, device=device) - torch.cat((ends.new_zeros(1), ends[:-1]))[image]
        out[image, within] = targets[:, 1:]
        out[..., 1:5] = xywh2xyxy(out[..., 1:5].mul_(scale_tensor))
        return out

    return preprocess


def _torch_keeping_constants(run: Run, original: Any) -> Any:
    """Return a stand-in for the module `torch`, whose `tensor` copies the same few numbers to the device once."""
    kept: OrderedDict[Any, torch.Tensor] = OrderedDict()

    @functools.wraps(original.tensor)
    def tensor(data: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a tensor of its own, made from the one on the device where these numbers are there."""
        numbers = isinstance(data, (list, tuple)) and all(type(n) in (int, float) for n in data)
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not numbers or args or device is None or device.type != "xpu" or kwargs.keys() - {"device", "dtype"}:
            return original.tensor(data, *args, **kwargs)
        key = (tuple((type(n), n) for n in data), kwargs.get("dtype"), device)
        if key not in kept:
            with torch.inference_mode(False):
                kept[key] = original.tensor(data, **kwargs)
            if len(kept) > _CONSTANTS_KEPT:
                kept.popitem(last=False)
        return kept[key].clone()

    return SimpleNamespace(**{**vars(original), "tensor": tensor})


ROWS = [
    Row(
        target="ultralytics.utils.tal:make_anchors",
        why="it makes the same anchors anew in every step, with a copy to the device and a wait for each feature map",
        source="ultralytics/utils/tal.py",
        needed=lambda run, original: run.options.fewer_waits,
        replacement=_make_anchors,
    ),
    Row(
        target="ultralytics.utils.loss:v8DetectionLoss.preprocess",
        why="it counts the targets on the device, which the host knew, and waits for the numbers",
        source="ultralytics/utils/loss.py",
        needed=lambda run, original: run.options.fewer_waits,
        replacement=_preprocess,
        everywhere=False,
    ),
    Row(
        target="ultralytics.utils.loss:torch",
        why="it copies the image's size and other small constants to the device in every step, and waits for it",
        source="ultralytics/utils/loss.py",
        needed=lambda run, original: run.options.fewer_waits,
        replacement=_torch_keeping_constants,
        everywhere=False,
    ),
]
