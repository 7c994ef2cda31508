"""What a training step no longer waits for, counted beside plain Ultralytics, with the same numbers coming out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ..conftest import TrainingData

STEPS = {"epochs": 2, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False, "warmup_epochs": 0, "nbs": 4}


@contextmanager
def plain_ultralytics() -> Iterator[None]:
    """Take back everything that this package changes in Ultralytics."""
    import ultralytics  # noqa: F401 - the first import of it activates

    from yolo_xpu_trainer.activation import process_patches

    process_patches().restore()
    try:
        yield
    finally:
        process_patches().apply()


def second_epoch(
    data: str, trainer: type, model_file: str = "yolo11n.yaml", **arguments: Any
) -> tuple[Any, int, list[float]]:
    """Train, and return what was counted in the second epoch, its batches, and every batch's loss."""
    from ultralytics import YOLO

    import xpu_simulator

    losses: list[torch.Tensor] = []
    counting = xpu_simulator.count()
    counted: list[Any] = []

    def start(trainer: Any) -> None:
        if trainer.epoch == 1:
            counted.append(counting.__enter__())

    def end(trainer: Any) -> None:
        if trainer.epoch == 1:
            counting.__exit__(None, None, None)

    model = YOLO(model_file)
    model.add_callback("on_train_epoch_start", start)
    model.add_callback("on_train_epoch_end", end)
    model.add_callback("on_train_batch_end", lambda trainer: losses.append(trainer.loss.detach()))
    if trainer.__name__.startswith("XPU"):
        arguments = {"xpu_channels_last": False, "xpu_fused_optimizer": False, **arguments}  # the same arithmetic
    model.train(trainer=trainer, data=data, device="xpu:0", amp=False, **{**STEPS, **arguments})
    return counted[0], len(model.trainer.train_loader), [float(loss) for loss in losses]


def test_a_step_waits_for_the_device_a_fifth_as_often_and_computes_the_same(xpu: Any, data: TrainingData) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    from yolo_xpu_trainer import XPUDetectionTrainer

    with plain_ultralytics():
        theirs, batches, their_losses = second_epoch(data("detect"), DetectionTrainer)
    ours, _, our_losses = second_epoch(data("detect"), XPUDetectionTrainer, xpu_log_every=1e9)
    assert our_losses == their_losses
    waits = {name: sum(counts.syncs.values()) / batches for name, counts in (("plain", theirs), ("ours", ours))}
    assert waits["plain"] >= 10
    assert waits["ours"] <= 2 + 1 / batches  # the epoch's last losses are read
    assert theirs.h2d["pageable", "blocking"] / batches >= 9
    assert ours.h2d["pageable", "blocking"] / batches <= 3
    assert ours.launches <= theirs.launches


@pytest.mark.parametrize(
    ("task", "model", "most"),
    [
        ("detect", "yolo26n.yaml", 4),
        ("segment", "yolo11n-seg.yaml", 3),
        ("segment", "yolo26n-seg.yaml", 18),
        ("pose", "yolo11n-pose.yaml", 4),
        ("pose", "yolo26n-pose.yaml", 30),
        ("obb", "yolo11n-obb.yaml", 8),
        ("obb", "yolo26n-obb.yaml", 16),
        ("classify", "yolo11n-cls.yaml", 0),
    ],
)
def test_every_tasks_loss_waits_less_and_is_the_same(
    xpu: Any, data: TrainingData, task: str, model: str, most: int
) -> None:
    from ultralytics.models import yolo

    from yolo_xpu_trainer import trainers

    name = {"detect": "Detection", "segment": "Segmentation", "classify": "Classification", "obb": "OBB"}.get(
        task, "Pose"
    )
    with plain_ultralytics():
        theirs, batches, their_losses = second_epoch(
            data(task), getattr(getattr(yolo, task), f"{name}Trainer"), model, optimizer="AdamW"
        )
    ours, _, our_losses = second_epoch(
        data(task), getattr(trainers, f"XPU{name}Trainer"), model, xpu_log_every=1e9, optimizer="AdamW"
    )
    assert our_losses == their_losses
    waits = {name: sum(counts.syncs.values()) / batches for name, counts in (("plain", theirs), ("ours", ours))}
    assert waits["ours"] <= most + 1 / batches  # the epoch's last losses are read
    assert waits["ours"] <= 0.6 * waits["plain"]
    assert ours.h2d["pageable", "blocking"] <= 0.6 * theirs.h2d["pageable", "blocking"]


def test_each_policy_has_a_switch(xpu: Any, data: TrainingData) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    from yolo_xpu_trainer import XPUDetectionTrainer

    switches = [f"xpu_{name}" for name in ("fewer_syncs", "host_counters", "host_metrics", "host_save", "fast_nms")]
    with plain_ultralytics():
        theirs, _, their_losses = second_epoch(data("detect"), DetectionTrainer, optimizer="AdamW")
    off = {**dict.fromkeys(switches, False), "xpu_log_every": 0}
    ours, _, our_losses = second_epoch(data("detect"), XPUDetectionTrainer, optimizer="AdamW", **off)
    assert our_losses == their_losses
    assert abs(sum(ours.syncs.values()) - sum(theirs.syncs.values())) <= 2  # a progress line reads in one go
    assert ours.launches == pytest.approx(theirs.launches, rel=0.01)


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("shape", [(6, 4), (1, 7), (5,)])
def test_a_foreground_mask_answers_as_a_plain_one(xpu: torch.device, shape: tuple[int, ...]) -> None:
    from yolo_xpu_trainer.policies.foreground import ForegroundMask

    generator = torch.Generator().manual_seed(0)
    plain = (torch.rand(shape, generator=generator) > 0.6).to(xpu)
    values = torch.rand(*shape, 3, generator=generator).to(xpu)
    mask = ForegroundMask.of(plain)
    assert torch.equal(values[mask], values[plain])
    assert torch.equal(values[..., 0][mask], values[..., 0][plain])
    assert torch.equal(values[mask, 1], values[plain, 1])
    assert bool(mask.any()) == bool(plain.any())
    assert int(mask.sum()) == int(plain.sum())
    assert torch.equal(7 / mask.sum(), 7 / plain.sum())
    assert torch.equal(mask.sum(-1), plain.sum(-1))
    assert all(
        torch.equal(a, b) for a, b in zip(mask.nonzero(as_tuple=True), plain.nonzero(as_tuple=True), strict=True)
    )
    assert torch.equal(mask.nonzero(), plain.nonzero())
    assert type(mask.float()) is torch.Tensor
    assert type(~mask) is torch.Tensor
    for mine, theirs in zip(mask, plain, strict=True):
        assert torch.equal(mine, theirs)
        if theirs.dim():
            assert bool(mine.any()) == bool(theirs.any())
    mine, theirs = values.clone(), values.clone()
    mine[mask], theirs[plain] = 2.0, 2.0
    assert torch.equal(mine, theirs)
    for index in (plain, mask):
        leaf = values.clone().requires_grad_()
        (leaf[index] ** 2).sum().backward()
        assert leaf.grad is not None
        assert torch.equal(leaf.grad[plain], 2 * values[plain])
        assert not leaf.grad[~plain].any()
    mask.view(-1)[0] = ~plain.view(-1)[0].clone()  # its positions were known
    assert torch.equal(values[mask], values[plain])


def test_the_progress_line_shows_an_epochs_last_losses_exactly(
    xpu: Any, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ultralytics.engine.trainer as upstream
    from ultralytics import YOLO

    from yolo_xpu_trainer import XPUDetectionTrainer

    lines: list[str] = []
    set_description = upstream.TQDM.set_description

    def remember(self: Any, text: str) -> None:
        lines.append(text)
        set_description(self, text)

    monkeypatch.setattr(upstream.TQDM, "set_description", remember)
    means: list[list[float]] = []
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_epoch_end", lambda t: means.append([float(v) for _, v in t.tloss.items()]))
    model.train(trainer=XPUDetectionTrainer, data=data("detect"), device="xpu:0", xpu_log_every=1e9, **STEPS)
    batches = len(model.trainer.train_loader)
    for epoch, exact in enumerate(means):
        shown = [float(v) for v in re.split(r"\s+", lines[(epoch + 1) * batches - 1].strip())[2:5]]
        assert shown == pytest.approx(exact, rel=1e-3)


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("images", [1, 3, 8])
def test_targets_are_padded_as_ultralytics_pads_them(xpu: torch.device, images: int) -> None:
    from types import SimpleNamespace

    from ultralytics.utils.loss import v8DetectionLoss

    import xpu_simulator
    from yolo_xpu_trainer import devices
    from yolo_xpu_trainer.policies import loss_syncs
    from yolo_xpu_trainer.run import Precision, Run

    run = Run(devices.info(0), (0,), Precision("fp32", "the test says so"))
    generator = torch.Generator().manual_seed(images)
    for total in (1, 2, 7, 40):
        index = torch.randint(images, (total,), generator=generator).sort().values
        targets = torch.cat((index[:, None].float(), torch.rand(total, 5, generator=generator)), 1)
        scale = torch.tensor([640.0, 480.0, 640.0, 480.0], device=xpu)
        loss = SimpleNamespace(device=xpu)
        moved = targets.to(xpu)
        loss_syncs._remember(run, moved, total, int(index.bincount().max()))
        original = v8DetectionLoss.preprocess
        preprocess = loss_syncs.preprocess.replacement(run, original)
        expected = original(loss, moved, images, scale)
        with xpu_simulator.count() as counts:
            assert torch.equal(preprocess(loss, moved, images, scale), expected)
        assert sum(counts.syncs.values()) == 1  # the comparison's
        moved.add_(0)  # nobody knows what it holds now
        with xpu_simulator.count() as counts:
            assert torch.equal(preprocess(loss, moved, images, scale), expected)
        assert sum(counts.syncs.values()) > 1


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


def test_callbacks_see_the_losses_as_ultralytics_gives_them(xpu: Any, data: TrainingData) -> None:
    from ultralytics import YOLO

    from yolo_xpu_trainer import XPUDetectionTrainer

    seen: list[torch.Tensor] = []
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_batch_end", lambda t: seen.append(torch.stack(list(t.tloss.values()))))
    model.train(trainer=XPUDetectionTrainer, data=data("detect"), device="xpu:0", xpu_log_every=1e9, **STEPS)
    assert len(seen) == 2 * len(model.trainer.train_loader)
    assert all(means.shape == (3,) for means in seen)


def test_a_validation_batch_is_not_padded_by_the_count_of_a_training_batch(
    xpu: Any, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has as many targets in all, but more in one image, would be written past its end."""
    from ultralytics import YOLO

    from yolo_xpu_trainer import XPUDetectionTrainer
    from yolo_xpu_trainer.policies import loss_syncs

    in_training: list[Any] = []
    in_validation: list[Any] = []
    original = loss_syncs._counts_of

    def counts_of(run: Any, tensor: Any) -> Any:
        known = original(run, tensor)
        (in_validation if torch.is_inference_mode_enabled() else in_training).append(known)
        return known

    monkeypatch.setattr(loss_syncs, "_counts_of", counts_of)
    YOLO("yolo11n.yaml").train(
        trainer=XPUDetectionTrainer, data=data("detect"), device="xpu:0", **{**STEPS, "val": True}
    )
    assert any(known is not None for known in in_training)
    assert in_validation
    assert all(known is None for known in in_validation)
