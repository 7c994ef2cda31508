"""The precision that a run computes in: asked for, or what its model can be trained in."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss

import xpu_simulator
from xpu_simulator import counters
from yolo_xpu_trainer import XPUDetectionTrainer
from yolo_xpu_trainer.trainers import XPUSemanticSegmentationTrainer

from ..conftest import Train, TrainingData

arc_a770 = pytest.mark.xpu_profile("arc-a770")


@arc_a770
def test_an_fp16_run_trains_where_there_is_no_float64(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    model = YOLO("yolo11n.yaml")
    given = {"data": data("detect"), "epochs": 3, "imgsz": 64, "batch": 2, "nbs": 2, "val": False}
    with xpu_simulator.count() as done:
        model.train(trainer=XPUDetectionTrainer, amp="fp16", project=str(tmp_path), plots=False, **given)
    trainer = model.trainer
    assert trainer.scaler.is_enabled()
    assert trainer.ema.updates == 12
    skipped = round(math.log2(2**16 / trainer.scaler.get_scale()))  # the scale halves with each
    assert skipped < 12
    assert {float(state["step"]) for state in trainer.optimizer.state.values()} == {12.0 - skipped}
    assert done.float64_kernels == {}


class StopHere(Exception):  # noqa: N818 - nothing is wrong
    """Ends a run once what matters was seen."""


class Loud(XPUDetectionTrainer):
    """Trains a model whose outputs float16 can't hold."""

    def get_model(self, *args: Any, **kwargs: Any) -> Any:
        model = super().get_model(*args, **kwargs)
        with torch.no_grad():
            for branch in model.model[-1].cv2:
                branch[-1].bias.fill_(3e5)
        return model


def begun(trainer: Any) -> dict[str, Any]:
    """Run a trainer up to its first batch; return what it computed in."""
    seen: dict[str, Any] = {}

    def look(trainer: Any) -> None:
        seen.update(
            precision=trainer.xpu.precision,
            amp=trainer.amp,
            scaling=trainer.scaler.is_enabled(),
        )
        raise StopHere

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen["dtype"] = output.dtype  # of the last one: hooks are tried in float32 first

    def watch(trainer: Any) -> None:
        next(m for m in trainer.model.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(note)

    trainer.add_callback("on_train_start", watch)
    trainer.add_callback("on_train_batch_end", look)
    with pytest.raises(StopHere):
        trainer.train()
    return seen


@pytest.mark.xpu_profile("core-ultra-155h")
@pytest.mark.parametrize(
    ("trainer", "amp", "name", "dtype"),
    [
        (XPUDetectionTrainer, True, "fp16", torch.float16),
        (Loud, True, "fp32", torch.float32),
        (Loud, "fp16", "fp16", torch.float16),
        (XPUDetectionTrainer, "bf16", "bf16", torch.bfloat16),
        (XPUDetectionTrainer, False, "fp32", torch.float32),
    ],
    ids=["sound", "too loud for fp16", "too loud, but asked for", "bf16 asked for", "switched off"],
)
def test_a_run_computes_in_what_was_asked_for_or_what_its_model_bears(
    xpu: torch.device,
    data: TrainingData,
    tmp_path: Path,
    trainer: type,
    amp: bool | str,
    name: str,
    dtype: torch.dtype,
) -> None:
    given = {"model": "yolo11n.yaml", "data": data("detect"), "imgsz": 32, "plots": False, "project": str(tmp_path)}
    seen = begun(trainer(overrides={**given, "amp": amp}))
    assert seen["precision"].name == name
    assert seen["dtype"] is dtype
    assert seen["amp"] is (name != "fp32")
    assert seen["scaling"] is (name == "fp16")


# Which precision is used where


@dataclass
class Precisions:
    """The dtypes that the model's first convolution gave, by phase: "train", "val" and "final"."""

    phase: str = "before"
    seen: dict[str, set[torch.dtype]] = field(default_factory=dict)
    scaled: bool = False

    def watch(self, trainer: Any) -> None:
        """Note what a trainer's phases are."""

        def enter(phase: str) -> None:
            self.phase = phase

        def start(trainer: Any) -> None:
            self.scaled = trainer.scaler.is_enabled()

        trainer.add_callback("on_train_start", start)
        trainer.add_callback("on_train_batch_start", lambda t: enter("train"))
        trainer.add_callback("on_val_start", lambda v: enter("val" if v.training else "final"))
        trainer.add_callback("on_val_end", lambda v: enter("between"))

    def note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note the dtype of a first convolution's output."""
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            self.seen.setdefault(self.phase, set()).add(output.dtype)


_PRECISIONS = [
    ("arc-b580", True, torch.bfloat16),
    ("arc-b580", False, torch.float32),
    ("arc-b580", "fp32", torch.float32),
    ("arc-b580", "fp16", torch.float16),
    ("arc-b580", "bf16", torch.bfloat16),
    ("arc-a770", True, torch.bfloat16),
    ("arc-a770", "fp16", torch.float16),
    ("core-ultra-155h", True, torch.float16),
    ("core-ultra-155h", "bf16", torch.bfloat16),
]


@pytest.mark.usefixtures("xpu")
@pytest.mark.parametrize(
    ("requested", "dtype"),
    [
        pytest.param(requested, dtype, marks=pytest.mark.xpu_profile(profile), id=f"{profile}-{requested}")
        for profile, requested, dtype in _PRECISIONS
    ],
)
def test_training_and_both_validations_run_in_the_precision_asked_for(
    requested: bool | str, dtype: torch.dtype, data: TrainingData, tmp_path: Path
) -> None:
    precisions = Precisions()
    trainer = XPUDetectionTrainer(
        overrides={
            "model": "yolo11n.yaml",
            "data": data("detect"),
            "device": "xpu",
            "amp": requested,
            "epochs": 1,
            "imgsz": 64,
            "batch": 4,
            "workers": 0,
            "plots": False,
            "project": str(tmp_path),
        }
    )
    precisions.watch(trainer)
    handle = nn.modules.module.register_module_forward_hook(precisions.note)
    try:
        trainer.train()
    finally:
        handle.remove()
    phases = {phase: precisions.seen[phase] for phase in ("train", "val", "final")}
    assert phases == {"train": {dtype}, "val": {dtype}, "final": {dtype}}
    assert precisions.scaled == (dtype == torch.float16)
    assert all(map(math.isfinite, trainer.metrics.values()))
    if not trainer.xpu.device.has_fp64:
        assert not counters.read().float64_kernels


# What a validator computes outside of autocast


@pytest.mark.usefixtures("xpu")
@pytest.mark.parametrize("resumed", [False, True])
def test_semantic_segmentation_with_class_weights_validates_in_bf16(
    train: Train, data: TrainingData, tmp_path: Path, resumed: bool
) -> None:
    given = {"data": data("semantic"), "trainer": XPUSemanticSegmentationTrainer}
    new = {**given, "model": "yolo26n-sem.yaml", "cls_pw": 0.5, "amp": "bf16"}
    if resumed:
        with pytest.raises(StopHere):
            train(**new, epochs=2, val=False, callbacks={"on_model_save": stop_here}, name="first")
        trainer = train(**given, model=str(tmp_path / "first" / "weights" / "last.pt"), resume=True)
    else:
        trainer = train(**new)
    assert trainer.xpu.precision.name == "bf16"
    assert trainer.model.class_weights.dtype is torch.float32
    assert all(math.isfinite(value) for key, value in trainer.metrics.items() if "loss" in key)


def stop_here(trainer: Any) -> None:
    raise StopHere


class Criterion:
    """A criterion that is no class of Ultralytics', and gets a model's outputs as they are."""

    def __init__(self, model: Any) -> None:
        self.theirs = v8DetectionLoss(model)
        self.dtypes: set[torch.dtype] = set()

    def __call__(self, preds: Any, batch: Any) -> Any:
        loss, items = self.theirs(preds, batch)
        scores = self.theirs.parse_output(preds)["scores"]
        self.dtypes.add(scores.dtype)
        weights = torch.ones(scores.shape[1], device=scores.device)
        flat = scores.transpose(1, 2).flatten(0, 1)
        return loss + nn.CrossEntropyLoss(weight=weights)(flat, flat.argmax(1)), items


class OwnLossModel(DetectionModel):
    """Has such a criterion."""

    def init_criterion(self) -> Criterion:
        return Criterion(self)


class OwnValidator(DetectionValidator):
    """Looks at a model's outputs by NumPy, which knows no bfloat16."""

    looked_at = 0

    def postprocess(self, preds: Any) -> Any:
        for feature in preds[1]["feats"]:
            feature.cpu().numpy()
            OwnValidator.looked_at += 1
        return super().postprocess(preds)


class OwnLossTrainer(XPUDetectionTrainer):
    """Trains such a model, and validates it by a validator of its own."""

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> OwnLossModel:
        return OwnLossModel(cfg, nc=self.data["nc"], verbose=False)

    def get_validator(self) -> OwnValidator:
        return OwnValidator(self.test_loader, self.save_dir, args=copy(self.args), _callbacks=self.callbacks)


@pytest.mark.usefixtures("xpu")
def test_own_losses_and_validators_get_float32_from_a_validated_model(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OwnValidator, "looked_at", 0)
    seen: list[set[torch.dtype]] = []
    note = {"on_fit_epoch_end": lambda trainer: seen.append(trainer.ema.ema.criterion.dtypes)}
    train(trainer=OwnLossTrainer, amp="bf16", callbacks=note)
    assert seen[0] == {torch.float32}
    assert OwnValidator.looked_at == 6  # after the epoch, and of the best weights


@pytest.mark.usefixtures("xpu")
def test_a_distilled_model_is_validated_in_bf16(train: Train, tmp_path: Path) -> None:
    train(amp="bf16", name="teacher")
    precisions = Precisions()
    handle = nn.modules.module.register_module_forward_hook(precisions.note)
    start = {"on_train_start": precisions.watch}
    try:
        train(amp="bf16", distill_model=str(tmp_path / "teacher" / "weights" / "last.pt"), callbacks=start)
    finally:
        handle.remove()
    assert precisions.seen["val"] == {torch.bfloat16}


class NotingLoss(v8DetectionLoss):
    """Notes something in the batch that it gets, for its model."""

    def loss(self, preds: Any, batch: Any) -> Any:
        batch["noted"] = batch["img"].shape
        return super().loss(preds, batch)


class NotingModel(DetectionModel):
    """Reads what its loss noted."""

    def init_criterion(self) -> NotingLoss:
        return NotingLoss(self)

    def loss(self, batch: Any, preds: Any = None) -> Any:
        found = super().loss(batch, preds)
        assert batch["noted"] == batch["img"].shape
        return found


class NotingTrainer(XPUDetectionTrainer):
    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> NotingModel:
        return NotingModel(cfg, nc=self.data["nc"], verbose=False)


def test_what_a_loss_notes_in_its_batch_is_there_afterwards(train: Train) -> None:
    train(trainer=NotingTrainer, amp="bf16")
