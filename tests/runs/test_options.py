"""Options in a run: neither args.yaml nor a checkpoint holds them for Ultralytics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import YAML

from yolo_xpu_trainer import Options, XPUDetectionTrainer

from ..conftest import TrainingData
from ..options import options

Build = Callable[..., Any]


@pytest.fixture
def build(xpu: torch.device, data: TrainingData, tmp_path: Path) -> Build:
    """Return a function that makes a trainer, up to the point where training would begin."""

    def make(trainer: type = XPUDetectionTrainer, **more: Any) -> Any:
        given = {"model": "yolo11n.yaml", "data": data("detect"), "imgsz": 32, "project": str(tmp_path)}
        return trainer(overrides={**given, **more})

    return make


# Upstream sees nothing of them


def test_neither_args_yaml_nor_a_checkpoint_holds_an_option(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_XPU_NON_BLOCKING", "0")
    ours = build(xpu_pin_memory=False, epochs=1, plots=False, val=False, amp="bf16")
    ours.train()
    theirs = build(trainer=DetectionTrainer, device="cpu")
    arguments = YAML.load(ours.save_dir / "args.yaml")
    assert set(arguments) == set(YAML.load(theirs.save_dir / "args.yaml"))
    assert isinstance(arguments["amp"], bool)
    checkpoint = torch.load(ours.last, map_location="cpu", weights_only=False)
    assert not [name for name in checkpoint["train_args"] if "xpu" in name]
    assert checkpoint["xpu_trainer"]["options"]["pin_memory"] is False
    assert checkpoint["xpu_trainer"]["options"]["non_blocking"] is False


def test_model_train_takes_options_too(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    model = YOLO("yolo11n.yaml")
    seen: list[Options] = []

    def stop(trainer: Any) -> None:
        seen.append(trainer.xpu.options)
        raise KeyboardInterrupt

    model.add_callback("on_pretrain_routine_end", stop)
    with pytest.raises(KeyboardInterrupt):
        model.train(
            trainer=XPUDetectionTrainer,
            data=data("detect"),
            imgsz=32,
            plots=False,
            project=str(tmp_path),
            xpu_pin_memory="false",
        )
    assert seen == [options(pin_memory=False)]
