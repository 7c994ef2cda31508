"""No policy is needed by another, or by the mixin: each can be blocked, and a training runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from yolo_xpu_trainer.plugins import built_in, manager

from ..conftest import Train


@pytest.mark.parametrize("name", built_in())
def test_a_training_runs_with_any_policy_blocked(
    xpu: torch.device, train: Train, name: str, empty_figures: None
) -> None:
    asked: list[str] = []

    def look(trainer: Any) -> None:
        asking = trainer.xpu.hooks
        asked.extend(
            implementation.plugin_name
            for hook in vars(manager().hook)
            if hook.startswith("xpu_")
            for implementation in asking.implementations(hook)
        )

    amp = {"amp": False} if name == "amp_check" else {}  # Ultralytics' own check downloads a model
    trainer = train(callbacks={"on_train_end": look}, xpu_plugins=f"-{name}", **amp)
    assert trainer.device == xpu
    assert trainer.last.exists()
    assert asked
    assert name not in asked


def test_a_name_that_is_not_loaded_is_said(log: list[Any]) -> None:
    from yolo_xpu_trainer.plugins import hooks

    hooks("-prefetc")
    (warning,) = [record.getMessage() for record in log if "prefetc" in record.getMessage()]
    assert "Did you mean 'prefetch'?" in warning
