"""The masks of YOLO26's candidates are compared as Ultralytics compares them, with one wait instead of four."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ultralytics.utils import tal

import xpu_simulator
from yolo_xpu_trainer.policies.loss_syncs import mask_overlaps
from yolo_xpu_trainer.policies.loss_syncs.mask_overlaps import pair_overlaps

pytestmark = pytest.mark.skipif(
    not hasattr(tal, "SegTaskAlignedAssigner"), reason="this Ultralytics assigns without looking at masks"
)

IMAGES, LABELS, ANCHORS, CLASSES, SIZE = 4, 5, 60, 3, 12


def assigned(
    device: torch.device, labels: list[int], ours: bool, size: int = SIZE, masks: bool = True, **settings: Any
) -> tuple[torch.Tensor, ...]:
    """Return what an assigner gives for random predictions, where image `i` has `labels[i]` labels."""
    draw = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=draw)

    def boxes(*shape: int) -> torch.Tensor:
        corners = rand(*shape, 4) * 48
        return torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:] / 2 + 6], -1)

    assigner = tal.SegTaskAlignedAssigner(topk=4, num_classes=CLASSES, stride=[8, 16, 32], **settings)
    if ours:
        assigner.pair_overlaps = pair_overlaps.replacement(None, type(assigner).pair_overlaps).__get__(assigner)
    n = max(labels)
    given: dict[str, Any] = {
        "pd_scores": rand(IMAGES, ANCHORS, CLASSES),
        "pd_bboxes": boxes(IMAGES, ANCHORS),
        "anc_points": rand(ANCHORS, 2) * 64,
        "gt_labels": (rand(IMAGES, n, 1) * CLASSES).floor(),
        "gt_bboxes": boxes(IMAGES, n),
        "mask_gt": (torch.arange(n)[None] < torch.tensor(labels)[:, None])[..., None].float(),
        "pd_coef": rand(IMAGES, ANCHORS, 8) - 0.5,
        "mask_scale": torch.full((IMAGES, 1), size / 64),
        "proto": (rand(IMAGES, 8, size, size) - 0.5) * masks,
        "gt_masks": (rand(IMAGES, n + 1, size, size) > 0.4) & masks,
    }
    given["gt_bboxes"] *= given["mask_gt"]
    found: tuple[torch.Tensor, ...] = assigner(**{name: value.to(device) for name, value in given.items()})
    return found


@pytest.mark.parametrize("settings", [{}, {"topk2": 1}], ids=str)
@pytest.mark.parametrize("labels", [[5, 0, 2, 5], [1, 1, 1, 1], [0, 0, 0, 3], [0, 0, 0, 0]], ids=str)
def test_targets_are_those_of_ultralytics(
    xpu: torch.device, labels: list[int], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(labels):
        labels = [1, 0, 0, 0]
        monkeypatch.setattr(tal.TaskAlignedAssigner, "select_candidates_in_gts", _none)
    with xpu_simulator.count() as before:
        expected = assigned(xpu, labels, ours=False, **settings)
    with xpu_simulator.count() as counts:
        seen = assigned(xpu, labels, ours=True, **settings)
    for one, other in zip(seen, expected, strict=True):
        assert torch.equal(one, other)
    assert sum(counts.syncs.values()) == 2  # for the pairs, and for how many anchors each image has
    if candidates := sum(before.syncs.values()) > 2:  # else Ultralytics has no mask to compare, either
        assert counts.launches < before.launches
    assert candidates is (tal.TaskAlignedAssigner.select_candidates_in_gts is not _none)


def _none(self: Any, xy_centers: torch.Tensor, gt_bboxes: torch.Tensor, *args: Any) -> torch.Tensor:
    """Find no anchor in any box."""
    return torch.zeros(*gt_bboxes.shape[:2], len(xy_centers), dtype=torch.bool, device=gt_bboxes.device)


def test_masks_that_are_compared_in_parts_give_the_same(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = assigned(xpu, [5, 0, 2, 5], ours=True)
    monkeypatch.setattr(mask_overlaps, "_PIXELS", 25 * SIZE * SIZE)
    monkeypatch.setattr(mask_overlaps, "_EXACT", 50)
    for one, other in zip(assigned(xpu, [5, 0, 2, 5], ours=True), whole, strict=True):
        assert torch.equal(one, other)


def test_masks_without_a_pixel_overlap_nowhere(xpu: torch.device) -> None:
    expected = assigned(xpu, [5, 0, 2, 5], ours=False, masks=False)
    for one, other in zip(assigned(xpu, [5, 0, 2, 5], ours=True, masks=False), expected, strict=True):
        assert torch.equal(one, other)


def test_pixels_are_counted_exactly_under_autocast(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tal, "autocast", lambda enabled: torch.autocast("xpu", enabled=enabled))
    with torch.autocast("xpu", torch.bfloat16):
        expected, seen = (assigned(xpu, [5, 0, 2, 5], ours=ours, size=48) for ours in (False, True))
    for one, other in zip(seen, expected, strict=True):
        assert torch.equal(one, other)


class Squared(getattr(tal, "SegTaskAlignedAssigner", object)):  # type: ignore[misc]
    """A user's own assigner, whose overlaps of boxes are others."""

    def iou_calculation(self, gt_bboxes: torch.Tensor, pd_bboxes: torch.Tensor) -> torch.Tensor:
        return super().iou_calculation(gt_bboxes, pd_bboxes).square()  # type: ignore[no-any-return]


def test_a_users_own_assigner_compares_boxes_in_its_way(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = assigned(xpu, [5, 0, 2, 5], ours=True)
    monkeypatch.setattr(tal, "SegTaskAlignedAssigner", Squared)
    expected, seen = (assigned(xpu, [5, 0, 2, 5], ours=ours) for ours in (False, True))
    assert not torch.equal(usual[2], expected[2])
    for one, other in zip(seen, expected, strict=True):
        assert torch.equal(one, other)


def test_an_assigner_on_the_cpu_is_left_to_ultralytics() -> None:
    expected = assigned(torch.device("cpu"), [5, 0, 2, 5], ours=False)
    for one, other in zip(assigned(torch.device("cpu"), [5, 0, 2, 5], ours=True), expected, strict=True):
        assert torch.equal(one, other)


def test_ultralytics_own_is_replaced_only_as_long_as_it_says_what_is_known() -> None:
    original = tal.SegTaskAlignedAssigner.pair_overlaps
    assert pair_overlaps.needed(original)
    assert not pair_overlaps.needed(tal.TaskAlignedAssigner.pair_overlaps)
    assert not pair_overlaps.needed(lambda *args: original(*args))
