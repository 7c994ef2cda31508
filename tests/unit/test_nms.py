"""Non-maximum suppression on the device: the boxes that Ultralytics keeps, with a few syncs a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..training import plain_ultralytics


def predictions(trial: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Draw raw predictions of three images, with ties in scores and boxes in some trials, and NMS settings."""
    generator = torch.Generator().manual_seed(trial)
    anchors, classes = int(torch.randint(1, 500, (1,), generator=generator)), 4

    def rand(channels: int) -> torch.Tensor:
        return torch.rand(3, channels, anchors, generator=generator)

    centres, sizes, scores = rand(2) * 200, rand(2) * 80 + 4, rand(classes)
    if trial % 3 == 0:
        scores = (scores * 5).round() / 5
    if trial % 5 == 0:
        centres, sizes = (centres / 20).round() * 20, torch.full_like(sizes, 30)
    raw = torch.cat((centres, sizes, scores, rand(2 * (trial % 2))), 1)
    settings = {
        "conf_thres": [0.001, 0.25, 0.9, 0.99999][trial % 4],
        "iou_thres": 0.5,
        "nc": classes,
        "multi_label": bool(trial % 2),
        "agnostic": trial % 7 == 0,
        "max_det": [300, 20][trial % 2],
        "return_idxs": True,
    }
    return raw, settings


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("trial", range(20))
def test_nms_keeps_the_boxes_that_ultralytics_keeps_on_the_cpu_in_their_order(xpu: torch.device, trial: int) -> None:
    import torchvision  # noqa: F401 - Ultralytics takes its kernel if it is imported
    from ultralytics.utils import nms

    raw, settings = predictions(trial)
    with plain_ultralytics():
        expected, expected_anchors = nms.non_max_suppression(raw.clone(), **settings)
    found, anchors = nms.non_max_suppression(raw.to(xpu), **settings)
    for a, b, i, j in zip(expected, found, expected_anchors, anchors, strict=True):
        assert b.device == xpu
        assert torch.equal(a, b.cpu())
        assert torch.equal(i.view(-1).long(), j.cpu().view(-1).long())


def test_nms_waits_a_few_times_a_batch_rather_than_for_every_box(xpu: torch.device) -> None:
    from ultralytics.utils import nms

    import xpu_simulator

    raw, settings = predictions(1)
    raw = raw.to(xpu)
    with plain_ultralytics(), xpu_simulator.count() as theirs:
        nms.non_max_suppression(raw.clone(), **settings)
    with xpu_simulator.count() as ours:
        nms.non_max_suppression(raw.clone(), **settings)
    assert sum(theirs.syncs.values()) > 100
    assert sum(ours.syncs.values()) <= 4


@pytest.mark.parametrize("candidates", [0, 1, 5, 6, 7])
def test_nms_takes_no_number_of_candidates_for_decoded_boxes(xpu: torch.device, candidates: int) -> None:
    from ultralytics.utils import nms

    raw, _ = predictions(1)
    raw = raw[..., :50].clone()
    raw[:, 4:8] = 0
    raw[:, 5, :candidates] = 0.9
    settings: dict[str, Any] = {"conf_thres": 0.25, "iou_thres": 1.0, "nc": 4}
    with plain_ultralytics():
        expected = nms.non_max_suppression(raw.clone(), **settings)
    for a, b in zip(expected, nms.non_max_suppression(raw.to(xpu), **settings), strict=True):
        assert torch.equal(a, b.cpu())
