"""What older versions of Ultralytics do image by image or mask by mask, with waits for each, is done at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...own_code import says
from ...patches import patch

__all__ = ["crop_mask", "rotated_targets"]

_FEW = 50  # Ultralytics 8.4.60 crops fewer masks one by one, and more together


@patch(
    "ultralytics.utils.loss:v8OBBLoss.preprocess",
    why="it goes through a batch's images, with two syncs and more for each",
    needed=says("for j in range(batch_size)"),
)
def rotated_targets(
    original: Callable[..., Any], self: Any, targets: torch.Tensor, batch_size: int, scale_tensor: torch.Tensor
) -> torch.Tensor:
    """Pad targets to as many an image as the image with the most has: much as Ultralytics 8.4.190 does.

    Args:
        original: Ultralytics' own.
        self: The loss.
        targets: (n, 7): image, class, x, y, width, height, angle. Those of no image are left out.
        batch_size: How many images there are.
        scale_tensor: (4,), what x, y, width and height are multiplied by.

    Returns:
        (batch_size, most, 6), zeros where an image has fewer.
    """
    if targets.device.type != "xpu" or not len(targets):
        return original(self, targets, batch_size, scale_tensor)  # type: ignore[no-any-return]
    image = targets[:, 0].long()
    _, counts = image.unique(return_counts=True)  # type: ignore[no-untyped-call]
    most = int(counts.max())
    order = image.argsort(stable=True)  # a user's batch may have an image's targets in several places
    image = image[order]
    starts = torch.searchsorted(image, image)
    within = torch.arange(len(image), device=image.device) - starts
    image = image.where((image >= 0) & (image < batch_size), batch_size)  # one more image takes what is of none
    packed = targets[order, 1:]
    packed[:, 1:5].mul_(scale_tensor)
    out = torch.zeros(batch_size + 1, most, packed.shape[1], device=targets.device)
    out[image, within] = packed.to(out.dtype)
    return out[:batch_size]


@patch(
    "ultralytics.utils.ops:crop_mask",
    why="it crops a few masks one by one unless they are CUDA's, with four syncs for each",
    needed=says("not masks.is_cuda", "clamp(min=0)"),  # before, a box that begins outside was cropped otherwise
)
def crop_mask(original: Callable[..., Any], masks: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Set masks to zero outside of their boxes, whose borders are rounded, as one by one.

    Args:
        original: Ultralytics' own.
        masks: (n, height, width); changed in place.
        boxes: (n, 4), two corners in pixels.

    Returns:
        The masks.
    """
    if masks.device.type != "xpu" or len(masks) >= _FEW:
        return original(masks, boxes)  # type: ignore[no-any-return]
    _, height, width = masks.shape
    left, top, right, bottom = boxes.to(masks.device).clamp(min=0).round().int()[:, :, None, None].unbind(1)
    columns = torch.arange(width, device=masks.device)
    rows = torch.arange(height, device=masks.device)[:, None]
    outside = (columns < left) | (columns >= right) | (rows < top) | (rows >= bottom)
    return masks.masked_fill_(outside, 0)
