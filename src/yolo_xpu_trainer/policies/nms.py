"""Rows for non-maximum suppression: Ultralytics runs it on an XPU in a Python loop that waits for every kept box."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..options import Options
from .rows import Row

__all__ = ["ROWS"]


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


def _nms(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
        """Suppress by torchvision's kernel, on the XPU where it can be had."""
        if boxes.device.type != "xpu" or not Options.current().fast_nms:
            return original(boxes, scores, iou_threshold)  # type: ignore[no-any-return]
        import torchvision

        if xpu_kernel_agrees():
            return torchvision.ops.nms(boxes, scores, iou_threshold)  # type: ignore[no-any-return]
        both = torch.cat((boxes, scores[:, None]), 1).cpu()
        return torchvision.ops.nms(both[:, :4], both[:, 4], iou_threshold).to(boxes.device)  # type: ignore[no-any-return]

    return nms


def _non_max_suppression(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def non_max_suppression(*args: Any, **kwargs: Any) -> Any:
        """Suppress on the host, of each image only what may be kept, where there is no kernel for it on the XPU."""
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        asked = call.arguments
        prediction = asked["prediction"]
        prediction = prediction[0] if isinstance(prediction, (list, tuple)) else prediction
        decoded = prediction.shape[-1] == 6 or asked.get("end2end")
        left = decoded or not Options.current().fast_nms
        if prediction.device.type != "xpu" or left or xpu_kernel_agrees():
            return original(*args, **kwargs)
        import torchvision  # noqa: F401 - Ultralytics takes its CPU kernel if it is imported

        classes = asked.get("nc") or prediction.shape[1] - 4
        candidate = prediction[:, 4 : 4 + classes].amax(1) > asked["conf_thres"]
        most = int(candidate.sum(1).max())
        index = candidate.sort(dim=1, descending=True, stable=True).indices[:, :most]  # candidates first, in order
        rows = prediction.gather(2, index[:, None].expand(-1, prediction.shape[1], -1))
        asked["prediction"] = rows.cpu()
        result = original(*call.args, **call.kwargs)
        if not asked.get("return_idxs"):
            return _to(prediction.device, result)
        kept, positions = result
        on_host = index.cpu()
        anchors = [on_host[i][p.view(-1).long()] for i, p in enumerate(positions)]
        return _to(prediction.device, kept), _to(prediction.device, anchors)

    return non_max_suppression


def _to(device: torch.device, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copy tensors of any lengths to a device at once."""
    joined = torch.cat(tensors).to(device)
    return list(torch.split(joined, [len(t) for t in tensors]))


def _refuses_xpu(run: None, original: Callable[..., Any]) -> bool:
    return "xpu" in inspect.getsource(inspect.unwrap(original))


ROWS = [
    Row(
        target="ultralytics.utils.nms:non_max_suppression",
        why="it refuses torchvision's NMS for an XPU and loops over the boxes in Python, waiting six times for each",
        source="ultralytics/utils/nms.py: 'it has no XPU NMS kernel'; torch-xpu-ops registers one",
        needed=_refuses_xpu,
        replacement=_non_max_suppression,
        optional=True,
    ),
    Row(
        target="ultralytics.utils.nms:TorchNMS.nms",
        why="it loops over the boxes in Python, waiting six times for each",
        source="ultralytics/utils/nms.py",
        needed=lambda run, original: True,
        replacement=_nms,
        everywhere=False,
        optional=True,
    ),
]
