"""No policy is needed by another, or by the mixin: each can be blocked, and a training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from yolo_xpu_trainer import XPUDetectionTrainer
from yolo_xpu_trainer.plugins import built_in

from ..conftest import TrainingData


@pytest.mark.parametrize("name", built_in())
def test_a_training_runs_with_any_policy_blocked(
    xpu: torch.device, data: TrainingData, tmp_path: Path, name: str, empty_figures: None
) -> None:
    asked: list[str] = []

    def look(trainer: Any) -> None:
        hooks = vars(trainer._hooks)
        for hook in hooks.values():
            asked.extend(getattr(hook, "get_hookimpls", list)() and [i.plugin_name for i in hook.get_hookimpls()])

    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_end", look)
    model.train(
        trainer=XPUDetectionTrainer,
        data=data("detect"),
        project=str(tmp_path),
        epochs=1,
        imgsz=32,
        workers=0,
        plots=False,
        xpu_plugins=f"-{name}",
        **({"amp": False} if name == "amp_check" else {}),  # Ultralytics' own check downloads a model
    )
    assert model.trainer.device == xpu
    assert model.trainer.last.exists()
    assert asked
    assert name not in asked


def test_a_name_that_is_not_loaded_is_said(log: list[Any]) -> None:
    from yolo_xpu_trainer.plugins import hooks

    hooks("-prefetc")
    (warning,) = [record.getMessage() for record in log if "prefetc" in record.getMessage()]
    assert "Did you mean 'prefetch'?" in warning
