"""A model that is replayed as graphs learns what it learns without them, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

import xpu_simulator

from ..conftest import Train

pytestmark = pytest.mark.needs("torch.xpu.make_graphed_callables")

ARGUMENTS: dict[str, Any] = {
    "epochs": 2,
    "batch": 4,
    "nbs": 8,
    "warmup_epochs": 0,
    "optimizer": "AdamW",
    "xpu_cast_weights": True,
}


class Seen:
    """What a training's callbacks see."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.launches: list[int] = []
        self.replays: list[int] = []
        self._counting: Any = None

    def begin(self, trainer: Any) -> None:
        self._counting = xpu_simulator.count()
        self._counts = self._counting.__enter__()

    def end(self, trainer: Any) -> None:
        self._counting.__exit__(None, None, None)
        self.losses.append(trainer.loss.item())
        self.launches.append(self._counts.launches)
        self.replays.append(self._counts.launches_by_op.get("XPUGraph::replay", 0))

    def callbacks(self) -> dict[str, Callable[[Any], None]]:
        return {"on_train_batch_start": self.begin, "on_train_batch_end": self.end}


def trained(train: Train, graphs: bool, **arguments: Any) -> tuple[Any, Seen]:
    seen = Seen()
    trainer = train(callbacks=seen.callbacks(), xpu_graphs=graphs, **{**ARGUMENTS, **arguments})
    return trainer, seen


def lines(log: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in log if "graphs" in record.getMessage()]


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "arguments",
    [
        {"amp": "fp32"},
        {"amp": "fp32", "optimizer": "SGD", "val": False},
        {"amp": "bf16", "optimizer": "SGD", "imgsz": 64},
        {"amp": "bf16", "batch": 3},
        {"amp": "bf16", "model": "yolo26n.yaml", "xpu_cast_weights": False, "val": False},
    ],
    ids=str,
)
def test_losses_weights_and_averages_are_those_without_graphs(train: Train, arguments: dict[str, Any]) -> None:
    trainer, seen = trained(train, True, **arguments)
    other, expected = trained(train, False, **arguments)
    assert sum(seen.replays) > 0
    assert seen.losses == expected.losses
    for ours, theirs in ((trainer.model, other.model), (trainer.ema.ema, other.ema.ema)):
        weights = state(theirs)
        assert [name for name, value in state(ours).items() if not torch.equal(value, weights[name])] == []
    assert trainer.metrics == other.metrics
