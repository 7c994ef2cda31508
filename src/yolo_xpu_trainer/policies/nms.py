"""Non-maximum suppression by torchvision: Ultralytics loops over boxes in Python on an XPU, with a sync for each."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

import torch

from ..devices import info
from ..hookspecs import hookimpl
from ..numerics import Check, finding
from ..options import Option
from ..own_code import source_of
from ..patches import patch

__all__ = ["PATCHES"]

FAST_NMS = Option("fast_nms", True, "non-maximum suppression is torchvision's, not a loop in Python", modes="all")


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [FAST_NMS]


MANY = 1024
"""Candidates of an image from which the device may be the cheaper place: the host compares each with each."""

_GAIN = 2  # how much faster the XPU's kernel must be, because around it the host waits several times for each image


@functools.cache
def xpu_kernel_is_faster() -> bool:
    """Whether torchvision's kernel for XPUs is right here, and clearly faster than a copy and its CPU kernel."""
    if not finding(_KERNEL, info(torch.xpu.current_device())).right:
        return False
    boxes, scores = _probe(2 * MANY)
    on_xpu = boxes.to("xpu"), scores.to("xpu")
    return _seconds(_suppressed, *on_xpu) * _GAIN < _seconds(_suppressed_on_host, *on_xpu)


def _probe(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes that overlap here and there, and their scores, with ties."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(n, 2, generator=generator) * 640
    boxes = torch.cat((corners, corners + 4 + 28 * torch.rand(n, 2, generator=generator)), 1)
    return boxes, (torch.rand(n, generator=generator) * 256).round() / 256


def _differing(device: torch.device) -> float:
    """Return the share of kept boxes in which a device's kernel differs from the CPU's, or 1 where it keeps others.

    XPU builds of PyTorch register theirs when it is first called (torch-xpu-ops, XPUFallback.cpp), so nothing less
    tells whether there is one.
    """
    boxes, scores = _probe(2 * MANY)
    kept, expected = _suppressed(boxes.to(device), scores.to(device)).cpu(), _suppressed(boxes, scores)
    return float((kept != expected).double().mean()) if kept.shape == expected.shape else 1.0


_KERNEL = Check(
    "non-maximum suppression", torch.int64, _differing, 0, "share", instead="Boxes are suppressed on the host"
)


@hookimpl
def xpu_numerics() -> list[Check]:
    return [_KERNEL]


def _suppressed(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float = 0.5) -> torch.Tensor:
    """Return the indices that torchvision's kernel for the boxes' device keeps."""
    import torchvision

    return torchvision.ops.nms(boxes, scores, iou_threshold)  # type: ignore[no-any-return]


def _suppressed_on_host(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float = 0.5) -> torch.Tensor:
    """Return the indices that its CPU kernel keeps, on the boxes' device."""
    both = torch.cat((boxes, scores[:, None]), 1).cpu()
    return _suppressed(both[:, :4], both[:, 4], iou_threshold).to(boxes.device)


def _seconds(suppress: Callable[..., torch.Tensor], boxes: torch.Tensor, scores: torch.Tensor) -> float:
    """Return the least time that a function takes of three, after one that isn't timed."""
    suppress(boxes, scores)
    times = []
    for _ in range(3):
        torch.xpu.synchronize(boxes.device)
        began = time.perf_counter()
        suppress(boxes, scores)
        torch.xpu.synchronize(boxes.device)
        times.append(time.perf_counter() - began)
    return min(times)


@patch(
    "ultralytics.utils.nms:TorchNMS.nms",
    why="it loops over the boxes in Python, with six syncs for each",
    optional=True,
)
def torch_nms(
    original: Callable[..., Any], boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Suppress by torchvision's kernel, on the XPU where that is the faster one."""
    if boxes.device.type != "xpu" or not FAST_NMS.current():
        return original(boxes, scores, iou_threshold)  # type: ignore[no-any-return]
    on_xpu = len(boxes) >= MANY and xpu_kernel_is_faster()
    return (_suppressed if on_xpu else _suppressed_on_host)(boxes, scores, iou_threshold)


def _refuses_xpu(original: Callable[..., Any]) -> bool:
    return "xpu" in source_of(original)


@patch(
    "ultralytics.utils.nms:non_max_suppression",
    why="it refuses torchvision's NMS for an XPU and loops over the boxes in Python, with six syncs for each",
    source="ultralytics/utils/nms.py: 'it has no XPU NMS kernel'; torch-xpu-ops registers one",
    needed=_refuses_xpu,
    optional=True,
)
def non_max_suppression(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Suppress on the host, of each image only what may be kept; on the XPU where that is much, and faster there."""
    call = inspect.signature(original).bind(*args, **kwargs)
    call.apply_defaults()
    asked = call.arguments
    prediction = asked["prediction"]
    prediction = prediction[0] if isinstance(prediction, (list, tuple)) else prediction
    decoded = prediction.shape[-1] == 6 or asked.get("end2end")
    if prediction.device.type != "xpu" or decoded or not FAST_NMS.current():
        return original(*args, **kwargs)
    import torchvision  # noqa: F401 - Ultralytics takes its CPU kernel if it is imported

    classes = asked.get("nc") or prediction.shape[1] - 4
    candidate = prediction[:, 4 : 4 + classes].amax(1) > asked["conf_thres"]
    max_per_image = int(candidate.sum(1).max())
    if max_per_image >= MANY and xpu_kernel_is_faster():
        return original(*args, **kwargs)  # which calls the other function of ours
    # Candidates first, in their order; never six columns, which Ultralytics takes for boxes that are decoded already.
    index = candidate.sort(dim=1, descending=True, stable=True).indices[:, : max(max_per_image, 7)]
    rows = prediction.gather(2, index[:, None].expand(-1, prediction.shape[1], -1))
    asked["prediction"] = rows.cpu()
    result = original(*call.args, **call.kwargs)
    if not asked.get("return_idxs"):
        return _to(prediction.device, result)
    kept, positions = result
    on_host = index.cpu()
    anchors = [on_host[i][p.view(-1).long()] for i, p in enumerate(positions)]
    return _to(prediction.device, kept), _to(prediction.device, anchors)


def _to(device: torch.device, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copy tensors of any lengths to a device at once."""
    joined = torch.cat(tensors).to(device)
    return list(torch.split(joined, [len(t) for t in tensors]))


PATCHES = [non_max_suppression, torch_nms]
