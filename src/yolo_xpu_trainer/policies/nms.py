"""Non-maximum suppression by torchvision: Ultralytics loops over boxes in Python on an XPU, with a sync for each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..patches import patch

__all__ = ["PATCHES"]

FAST_NMS = Option("fast_nms", True, "non-maximum suppression is torchvision's, not a loop in Python", modes="all")


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [FAST_NMS]


@functools.cache
def xpu_kernel_agrees() -> bool:
    """Whether torchvision has a kernel for XPUs here, which gives on a probe what its CPU kernel gives.

    The XPU builds of PyTorch register one since 2.4, with the first operation on an XPU (torch-xpu-ops#1403).
    """
    import torchvision

    torch.zeros(1, device="xpu")
    if not torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "XPU"):
        return False
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(256, 2, generator=generator) * 64
    boxes = torch.cat((corners, corners + 4 + 28 * torch.rand(256, 2, generator=generator)), 1)
    scores = torch.rand(256, generator=generator)
    try:
        kept = torchvision.ops.nms(boxes.to("xpu"), scores.to("xpu"), 0.5).cpu()
    except (NotImplementedError, RuntimeError):
        return False
    return torch.equal(kept, torchvision.ops.nms(boxes, scores, 0.5))


@patch(
    "ultralytics.utils.nms:TorchNMS.nms",
    why="it loops over the boxes in Python, with six syncs for each",
    optional=True,
)
def torch_nms(
    original: Callable[..., Any], boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Suppress by torchvision's kernel, on the XPU where it can be had."""
    if boxes.device.type != "xpu" or not FAST_NMS.current():
        return original(boxes, scores, iou_threshold)  # type: ignore[no-any-return]
    import torchvision

    if xpu_kernel_agrees():
        return torchvision.ops.nms(boxes, scores, iou_threshold)  # type: ignore[no-any-return]
    both = torch.cat((boxes, scores[:, None]), 1).cpu()
    return torchvision.ops.nms(both[:, :4], both[:, 4], iou_threshold).to(boxes.device)  # type: ignore[no-any-return]


def _refuses_xpu(original: Callable[..., Any]) -> bool:
    return "xpu" in inspect.getsource(inspect.unwrap(original))


@patch(
    "ultralytics.utils.nms:non_max_suppression",
    why="it refuses torchvision's NMS for an XPU and loops over the boxes in Python, with six syncs for each",
    source="ultralytics/utils/nms.py: 'it has no XPU NMS kernel'; torch-xpu-ops registers one",
    needed=_refuses_xpu,
    optional=True,
)
def non_max_suppression(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Suppress on the host, of each image only what may be kept, where there is no kernel for it on the XPU."""
    call = inspect.signature(original).bind(*args, **kwargs)
    call.apply_defaults()
    asked = call.arguments
    prediction = asked["prediction"]
    prediction = prediction[0] if isinstance(prediction, (list, tuple)) else prediction
    decoded = prediction.shape[-1] == _DECODED or asked.get("end2end")
    if prediction.device.type != "xpu" or decoded or not FAST_NMS.current() or xpu_kernel_agrees():
        return original(*args, **kwargs)
    import torchvision  # noqa: F401 - Ultralytics takes its CPU kernel if it is imported

    classes = asked.get("nc") or prediction.shape[1] - 4
    candidate = prediction[:, 4 : 4 + classes].amax(1) > asked["conf_thres"]
    max_per_image = int(candidate.sum(1).max())
    max_per_image += max_per_image == _DECODED  # a row more, which is none: six are taken for boxes that are decoded
    # Candidates first, in their order.
    index = candidate.sort(dim=1, descending=True, stable=True).indices[:, :max_per_image]
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


_DECODED = 6  # as many numbers say a decoded box, to Ultralytics

PATCHES = [non_max_suppression, torch_nms]
