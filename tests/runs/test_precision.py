"""The precision that a run computes in: asked for, or what its model can be trained in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLO

import xpu_simulator
from xpu_simulator import counters
from yolo_xpu_trainer import XPUDetectionTrainer

from ..conftest import TrainingData

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
        seen.setdefault("dtype", output.dtype)

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
