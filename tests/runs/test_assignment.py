"""What the assigner of an older Ultralytics asks the device for has an answer without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import xpu_simulator
from yolo_xpu_trainer import Precision, Run, devices
from yolo_xpu_trainer.policies import assignment


class OldAssigner:
    """Assigns as Ultralytics did before 8.4.120: it asks whether an anchor has several labels."""

    asked: torch.Tensor | None = None

    def highest(self, mask: torch.Tensor, overlaps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        labels = mask.sum(-2)
        if labels.max() > 1:
            self.asked = labels.max()
            several = (labels.unsqueeze(1) > 1).expand(-1, mask.shape[1], -1)
            best = torch.zeros_like(mask).scatter_(1, overlaps.argmax(1).unsqueeze(1), 1)
            mask = torch.where(several, best, mask).float()
            labels = mask.sum(-2)
        return mask.argmax(-2), labels, mask


@pytest.mark.parametrize("most", [1, 3], ids=["one label an anchor", "several"])
def test_the_device_is_not_asked_for_anchors_with_several_labels(xpu: torch.device, most: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 4, 50)
    for _ in range(most):
        mask.scatter_(1, torch.randint(4, (2, 1, 50), generator=generator), 1)
    overlaps = torch.rand(2, 4, 50, generator=generator)
    expected = OldAssigner().highest(mask, overlaps)
    assigner = OldAssigner()
    there = mask.to(xpu), overlaps.to(xpu)
    with xpu_simulator.count() as counts:
        found: Any = assignment.select_highest_overlaps.replacement(None, OldAssigner.highest)(assigner, *there)
    assert not counts.syncs
    assert assigner.asked is not None
    assert [type(tensor) for tensor in found] == [torch.Tensor] * 3
    assert [bool((a == b.cpu()).all()) for a, b in zip(expected, found, strict=True)] == [True] * 3


def test_a_mask_on_the_host_is_asked(xpu: torch.device) -> None:
    assigner = OldAssigner()
    assignment.select_highest_overlaps.replacement(None, OldAssigner.highest)(
        assigner, torch.eye(4)[None], torch.rand(1, 4, 4)
    )
    assert assigner.asked is None


@pytest.mark.parametrize("device", ["cpu", "xpu"])
def test_indices_of_labels_are_made_where_the_boxes_are(xpu: torch.device, device: str) -> None:
    run = Run(devices.info(0), (0,), Precision("fp32", "a test asks for it"))
    module = assignment.torch_of_assigner.replacement(run, torch)

    def metrics(self: Any, scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index = module.zeros([2, 2, 3], dtype=torch.long)
        index[1] = labels
        return index, module.zeros([2, 2, 3], dtype=torch.float32)

    scores, labels = torch.rand(2, 5, 4).to(device), torch.tensor([[1, 2, 3], [0, 0, 1]]).to(device)
    compute = assignment.get_box_metrics.replacement(run, metrics)
    with xpu_simulator.count() as counts:
        index, other = compute(SimpleNamespace(), scores, labels)
    assert not counts.syncs
    assert index.device.type == device
    assert index[1].tolist() == labels.tolist()
    assert other.device.type == "cpu"
    assert module.zeros([2, 2, 3], dtype=torch.long).device.type == "cpu"  # outside of it
