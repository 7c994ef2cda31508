"""What older versions of Ultralytics do one by one in their losses comes out the same, with fewer waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import xpu_simulator
from yolo_xpu_trainer.policies.loss_syncs import one_by_one


def of_each_image(self: Any, targets: torch.Tensor, batch_size: int, scale_tensor: torch.Tensor) -> torch.Tensor:
    """Pad targets as Ultralytics 8.3.0 does."""
    if targets.shape[0] == 0:
        return torch.zeros(batch_size, 0, 6, device=self.device)
    i = targets[:, 0]
    _, counts = i.unique(return_counts=True)  # type: ignore[no-untyped-call]
    out = torch.zeros(batch_size, int(counts.max()), 6, device=self.device)
    for j in range(batch_size):
        matches = i == j
        if n := matches.sum():
            bboxes = targets[matches, 2:]
            bboxes[..., :4].mul_(scale_tensor)
            out[j, :n] = torch.cat([targets[matches, 1:2], bboxes], dim=-1)
    return out


def of_each_mask(masks: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Crop masks as Ultralytics 8.4.60 does few that aren't CUDA's."""
    for i, (x1, y1, x2, y2) in enumerate(boxes.clamp(min=0).round().int()):
        masks[i, :y1] = 0
        masks[i, y2:] = 0
        masks[i, :, :x1] = 0
        masks[i, :, x2:] = 0
    return masks


@pytest.mark.parametrize(
    "images", [[], [0, 0, 0], [2, 0, 2, 3, 0, 2], [3], [0, 1, 5, 1], [-1, 0, 1], [-1, -1, 4, 4, 5]], ids=str
)
def test_rotated_targets_are_those_of_each_image(xpu: torch.device, images: list[int]) -> None:
    drawn = torch.rand(len(images), 6, generator=torch.Generator().manual_seed(0))
    targets = torch.cat([torch.tensor(images, dtype=torch.float32).view(-1, 1), drawn], 1).to(xpu)
    scale = torch.tensor([64.0, 32.0, 64.0, 32.0], device=xpu)
    loss = SimpleNamespace(device=xpu)
    expected = of_each_image(loss, targets.clone(), 4, scale)
    with xpu_simulator.count() as counts:
        seen = one_by_one.rotated_targets.replacement(None, of_each_image)(loss, targets, 4, scale)
    assert torch.equal(seen, expected)
    assert sum(counts.syncs.values()) <= 3
    assert torch.equal(targets[:, 1:].cpu(), drawn)


BOXES = [
    [1.4, 2.6, 5.5, 6.5],
    [-3.0, -1.0, 4.0, 3.0],
    [0.0, 0.0, 100.0, 100.0],
    [5.0, 5.0, 5.2, 5.2],
    [6.0, 6.0, 2.0, 2.0],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masks_are_cropped_as_each_by_itself(xpu: torch.device, dtype: torch.dtype) -> None:
    source = torch.randn(len(BOXES), 9, 8, generator=torch.Generator().manual_seed(0)).to(xpu, dtype)
    boxes = torch.tensor(BOXES, device=xpu)
    found = []
    for crop in (of_each_mask, one_by_one.crop_mask.replacement(None, of_each_mask)):
        leaf = source.clone().requires_grad_()
        masks = leaf * 1
        with xpu_simulator.count() as counts:
            cropped = crop(masks, boxes)
        (cropped * source).sum().backward()
        assert cropped is masks
        found.append((cropped, leaf.grad))
    assert not counts.syncs
    for expected, seen in zip(*found, strict=True):
        assert torch.equal(seen, expected)


def test_many_masks_and_those_of_a_cpu_are_left_to_ultralytics(xpu: torch.device) -> None:
    seen = []
    crop = one_by_one.crop_mask.replacement(None, lambda masks, boxes: seen.append(masks.device.type) or masks)
    crop(torch.ones(2, 4, 4), torch.zeros(2, 4))
    crop(torch.ones(50, 4, 4, device=xpu), torch.zeros(50, 4, device=xpu))
    assert seen == ["cpu", "xpu"]
