"""Non-maximum suppression on the device: the boxes that Ultralytics keeps, with a few syncs a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from yolo_xpu_trainer.policies import nms as nms_policy

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


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("candidates", range(9))
def test_nms_keeps_as_many_boxes_as_there_are_whatever_their_number(xpu: torch.device, candidates: int) -> None:
    from ultralytics.utils import nms

    raw = torch.zeros(1, 4 + 80, 21)
    raw[0, :2, :candidates] = 100.0 * torch.arange(1, candidates + 1)
    raw[0, 2:4] = 50
    raw[0, 4, :candidates] = 0.9
    with plain_ultralytics():
        expected = nms.non_max_suppression(raw.clone())
    found = nms.non_max_suppression(raw.to(xpu))
    assert len(expected[0]) == candidates
    assert torch.equal(expected[0], found[0].cpu())


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


# The XPU's own kernel


@pytest.fixture(autouse=True)
def _anew(nothing_known: None) -> Iterator[None]:
    nms_policy.xpu_kernel_is_faster.cache_clear()
    yield
    nms_policy.xpu_kernel_is_faster.cache_clear()


@pytest.fixture
def devices_used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note on which device boxes are suppressed."""
    import torchvision

    seen: list[str] = []
    original = torchvision.ops.nms

    def note(boxes: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.append(boxes.device.type)
        return original(boxes, *args)  # type: ignore[no-any-return]

    monkeypatch.setattr(torchvision.ops, "nms", note)
    return seen


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Return a function that says how long the XPU's kernel takes, and how long the host."""

    def let(on_xpu: float, on_host: float) -> None:
        times = {nms_policy._suppressed: on_xpu, nms_policy._suppressed_on_host: on_host}
        monkeypatch.setattr(nms_policy, "_seconds", lambda suppress, *boxes: times[suppress])

    return let


def test_a_kernel_that_is_registered_when_it_is_called_is_found(
    xpu: torch.device, timed: Callable[[float, float], None]
) -> None:
    # torch-xpu-ops, XPUFallback.cpp: no kernel stands in the dispatcher's table before the first call of one
    timed(1, 10)
    assert nms_policy.xpu_kernel_is_faster()


@pytest.mark.parametrize(("on_xpu", "on_host", "faster"), [(1, 3, True), (2, 3, False), (3, 1, False)])
def test_the_kernel_is_taken_where_it_is_clearly_faster(
    xpu: torch.device, timed: Callable[[float, float], None], on_xpu: float, on_host: float, faster: bool
) -> None:
    timed(on_xpu, on_host)
    assert nms_policy.xpu_kernel_is_faster() is faster


@pytest.mark.parametrize("fault", ["wrong", "missing", "failing"])
def test_a_kernel_that_is_wrong_or_missing_is_not_taken(
    xpu: torch.device, timed: Callable[[float, float], None], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    import torchvision

    original = torchvision.ops.nms

    def nms(boxes: torch.Tensor, *args: Any) -> torch.Tensor:
        if boxes.device.type == "xpu" and fault != "wrong":
            raise NotImplementedError("torchvision::nms") if fault == "missing" else RuntimeError("a driver says so")
        kept: torch.Tensor = original(boxes, *args)
        return kept if boxes.device.type == "cpu" else kept.flip(0)

    timed(1, 10)
    monkeypatch.setattr(torchvision.ops, "nms", nms)
    assert not nms_policy.xpu_kernel_is_faster()


@pytest.mark.parametrize("trial", range(6))
def test_many_candidates_are_suppressed_on_the_xpu_with_the_same_result(
    xpu: torch.device,
    trial: int,
    timed: Callable[[float, float], None],
    devices_used: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ultralytics.utils import nms

    raw, settings = predictions(trial)
    with plain_ultralytics():
        expected, _ = nms.non_max_suppression(raw.clone(), **settings)
    timed(1, 10)
    assert nms_policy.xpu_kernel_is_faster()
    monkeypatch.setattr(nms_policy, "MANY", 1)
    devices_used.clear()
    found, _ = nms.non_max_suppression(raw.to(xpu), **settings)
    assert set(devices_used) <= {"xpu"}
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, found, strict=True))
    assert devices_used or not any(map(len, found))


def test_few_candidates_are_suppressed_on_the_host_without_measuring(
    xpu: torch.device, devices_used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.utils import nms

    monkeypatch.setattr(nms_policy, "finding", lambda *asked: pytest.fail("it was tried"))
    raw, settings = predictions(1)
    nms.non_max_suppression(raw.to(xpu), **settings)
    assert set(devices_used) == {"cpu"}


def test_measuring_takes_some_milliseconds(xpu: torch.device) -> None:
    nms_policy.xpu_kernel_is_faster()
    nms_policy.xpu_kernel_is_faster.cache_clear()
    began = time.perf_counter()
    nms_policy.xpu_kernel_is_faster()
    assert time.perf_counter() - began < 2  # of a busy machine
