"""The factory with which tests train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .. import training
from ..conftest import Train, TrainingData


@pytest.fixture
def train(xpu: torch.device, data: TrainingData, tmp_path: Path) -> Train:
    """Return a function that trains a tiny model for an epoch, and returns its trainer.

    It takes what `training.train` takes: a task, a model, callbacks by event, `plain=True` for Ultralytics' own
    trainer without this package's changes, and arguments of `train()`.
    """

    def run(task: str = "detect", **arguments: Any) -> Any:
        return training.train(**{"data": data(task), "task": task, "project": str(tmp_path), **arguments})

    return run
