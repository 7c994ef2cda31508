"""YOLO26's segmentation compares the best candidates' masks; the host asks for their number once, not four times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...own_code import says
from ...patches import patch

__all__ = ["pair_overlaps"]

_PIXELS = 1 << 27  # of the masks that are compared at a time, as in Ultralytics
_EXACT = 2048  # pixels whose number 16 bits hold, as in Ultralytics
_ITS_STEPS = (  # those that are taken in another way here, and how what comes of them is used
    "dense.topk(min(3 * self.topk, dense.shape[-1]), dim=-1).indices",
    "(b[sel] * na + a[sel]).unique(return_inverse=True)",
    "r, counts = order.argsort()[ub], n[order].tolist()",
    "s = slice(i, i + max(1, (1 << 27) // (m * mh * mw)))",
    "pm = (coef[s, :m] @ proto[o].flatten(2)) > 0",
    "range(0, mh * mw, 2048)",
    "miou[sel] = ious[r[inv], g[sel], slot[inv]]",
    "return (iou + miou) / 2",
)


@patch(
    "ultralytics.utils.tal:SegTaskAlignedAssigner.pair_overlaps",
    why="it looks for the candidates whose masks are compared, with four syncs on the way",
    needed=says(*_ITS_STEPS),
    optional=True,  # before 8.4.120 or so candidates aren't compared by their masks
)
def pair_overlaps(
    original: Callable[..., Any],
    self: Any,
    indices: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    gt_bboxes: torch.Tensor,
    pd_bboxes: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    pd_coef: torch.Tensor,
    mask_scale: torch.Tensor,
    proto: torch.Tensor,
    gt_masks: torch.Tensor,
) -> torch.Tensor:
    """Return the mean of a pair's two overlaps, of boxes and of masks, as Ultralytics 8.4.190 does.

    Args:
        original: Ultralytics' own.
        self: The assigner.
        indices: Image, label and anchor of each pair, (n,) each, in this order.
        gt_bboxes: (images, labels, 4), in pixels.
        pd_bboxes: (images, anchors, 4), in pixels.
        scores: (images, anchors, classes).
        labels: (images, labels, 1), their classes.
        pd_coef: (images, anchors, prototypes), of the predicted masks.
        mask_scale: (images, 1), from pixels to those of the prototypes.
        proto: (images, prototypes, height, width).
        gt_masks: (images, labels or more, height, width), boolean.

    Returns:
        (n,). The overlap of masks is 0 for pairs that aren't among the best of their label.
    """
    if pd_bboxes.device.type != "xpu":
        return original(  # type: ignore[no-any-return]
            self, indices, gt_bboxes, pd_bboxes, scores, labels, pd_coef, mask_scale, proto, gt_masks
        )
    from ultralytics.utils import tal

    image, label, anchor = indices
    images, anchors = self.bs, pd_bboxes.shape[1]
    of_boxes = tal.TaskAlignedAssigner.pair_overlaps(self, indices, gt_bboxes, pd_bboxes)
    metric = of_boxes.new_zeros(images, self.n_max_boxes, anchors)
    aligned = scores[image, anchor, labels[image, label, 0].long()].pow(self.alpha) * of_boxes.pow(self.beta)
    metric[indices] = aligned + self.eps
    best = metric.topk(min(3 * self.topk, anchors), dim=-1).indices
    is_best = torch.zeros_like(metric, dtype=torch.bool).scatter_(-1, best, True)[indices]
    used = torch.zeros_like(metric, dtype=torch.bool)
    used[indices] = is_best
    used = used.any(1)  # the anchors of each image that have a mask to decode
    counts = used.sum(1)
    numbers = sorted(counts.tolist(), reverse=True)
    if not numbers[0]:
        return of_boxes / 2  # type: ignore[no-any-return]
    order = counts.argsort(descending=True)
    chosen = used.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[order, : numbers[0]]
    row = order[:, None]
    boxes = pd_bboxes[row, chosen] * mask_scale[row]
    of_masks = _overlaps(pd_coef[row, chosen], boxes, proto, gt_masks, order, numbers).to(of_boxes.dtype)
    place = (used.cumsum(1) - 1).clamp_(0)[image, anchor]  # among the chosen anchors of its image
    found = of_masks[order.argsort()[image], label, place]
    return (of_boxes + torch.where(is_best, found, 0)) / 2  # type: ignore[no-any-return]


def _overlaps(
    coefficients: torch.Tensor,
    boxes: torch.Tensor,
    proto: torch.Tensor,
    gt_masks: torch.Tensor,
    order: torch.Tensor,
    numbers: list[int],
) -> torch.Tensor:
    """Return the overlap of each label's mask with that of each chosen anchor of its image.

    Args:
        coefficients: (images, most, prototypes), in the order, as the boxes.
        boxes: (images, most, 4), in pixels of the prototypes.
        proto: (images, prototypes, height, width), as they come.
        gt_masks: (images, labels, height, width), boolean, as they come.
        order: (images,): the images by how many anchors they have, the one with the most first.
        numbers: How many each has, in the order.

    Returns:
        (images, labels, most), in the order; anything beyond an image's number.
    """
    from ultralytics.utils import tal

    height, width = proto.shape[-2:]
    found = torch.zeros(len(numbers), gt_masks.shape[1], numbers[0], device=boxes.device)
    i = 0
    while i < len(numbers) and numbers[i]:
        most = numbers[i]
        part = slice(i, i + max(1, _PIXELS // (most * height * width)))
        of = order[part]
        predicted = (coefficients[part, :most] @ proto[of].flatten(2)) > 0
        cropped = tal.crop_mask(predicted.view(-1, height, width), boxes[part, :most].reshape(-1, 4))
        predicted = cropped.view(predicted.shape)
        real, transposed = gt_masks[of].flatten(2).float(), predicted.float().transpose(1, 2)
        with tal.autocast(False):
            common = sum(
                (real[..., k : k + _EXACT] @ transposed[:, k : k + _EXACT]).float()
                for k in range(0, height * width, _EXACT)
            )
        union = real.sum(-1, dtype=torch.float)[..., None] + predicted.sum(-1)[:, None] - common
        found[part, :, :most] = common / union.clamp(min=1)
        i = part.stop
    return found
