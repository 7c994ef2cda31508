"""YOLO26's loss of keypoints comes out the same with keypoints that are found once."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ultralytics.utils import loss as losses

import xpu_simulator
from yolo_xpu_trainer.patches import applied
from yolo_xpu_trainer.policies.foreground import keypoints
from yolo_xpu_trainer.run import Stash

pytestmark = pytest.mark.skipif(
    not hasattr(losses, "PoseLoss26") or not keypoints.calculate_rle_loss.is_needed(),
    reason="this Ultralytics has no such loss",
)

POINTS = 5


class Flow(torch.nn.Module):
    """Stands for the model's flow: a number for each error."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.3], [0.7]]))

    def log_prob(self, error: torch.Tensor) -> torch.Tensor:
        return -(error @ self.weight)[:, 0].square()


def computed(
    device: torch.device, visible: torch.Tensor, wrong: list[int], ours: bool, backward: bool = True
) -> list[torch.Tensor | None]:
    """Return the loss and its gradients, where some predicted coordinates are no numbers."""
    draw = torch.Generator().manual_seed(0)
    predicted = torch.randn(len(visible), POINTS, 5, generator=draw)
    predicted.view(-1, 5)[wrong, 0] = torch.tensor([math.nan, math.inf, -math.inf] * len(wrong))[: len(wrong)]
    predicted = predicted.to(device).requires_grad_()
    real = torch.rand(len(visible), POINTS, 3, generator=draw).to(device)
    flow = Flow().to(device)
    loss = SimpleNamespace(
        flow_model=flow,
        target_weights=torch.rand(POINTS, generator=draw).to(device),
        rle_loss=losses.RLELoss(use_target_weight=True).to(device),
    )
    if hasattr(losses.PoseLoss26, "_rle_zero"):  # not before 8.4.120 or so
        loss._rle_zero = losses.PoseLoss26._rle_zero.__get__(loss)
    run: Any = SimpleNamespace(stash=Stash(), recovery=SimpleNamespace(guard=None))
    patches = [keypoints.calculate_rle_loss, keypoints.torch_of_losses] if ours else []
    with applied(patches, run):
        found = losses.PoseLoss26.calculate_rle_loss(loss, predicted, real, visible.to(device))
        if backward:
            found.nan_to_num().backward()
        assert type(losses.torch.isnan(predicted)) is torch.Tensor  # outside of the loss
    assert type(found) is torch.Tensor
    return [found.detach(), predicted.grad, flow.weight.grad]


@pytest.mark.parametrize("wrong", [[], [0], [0, 1, 2, 7, 29], list(range(30))], ids=len)
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_the_loss_and_its_gradients_are_those_of_ultralytics(xpu: torch.device, share: float, wrong: list[int]) -> None:
    visible = torch.rand(6, POINTS, generator=torch.Generator().manual_seed(1)) < share
    with xpu_simulator.count() as before:
        expected = computed(xpu, visible, wrong, ours=False)
    with xpu_simulator.count() as counts:
        seen = computed(xpu, visible, wrong, ours=True)
    for one, other in zip(seen, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one.nan_to_num(), other.nan_to_num())
    assert sum(counts.syncs.values()) <= 2
    assert sum(before.syncs.values()) > sum(counts.syncs.values()) or share == 0


def test_a_validation_computes_it_too(xpu: torch.device) -> None:
    visible = torch.rand(6, POINTS, generator=torch.Generator().manual_seed(1)) < 0.6
    with torch.inference_mode():
        expected, seen = (computed(xpu, visible, [0, 1], ours=ours, backward=False) for ours in (False, True))
    assert seen[0] is not None
    assert expected[0] is not None
    assert torch.equal(seen[0], expected[0])


def test_other_calls_of_isnan_give_plain_masks(xpu: torch.device) -> None:
    run: Any = SimpleNamespace(stash=Stash(), recovery=SimpleNamespace(guard=None))
    with applied([keypoints.torch_of_losses], run):
        assert type(losses.torch.isnan(torch.ones(3, device=xpu))) is torch.Tensor
