"""Weights that are rounded in one kernel give what autocast gives, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xpu_simulator

from ..conftest import Train

ARGUMENTS: dict[str, Any] = {"epochs": 2, "batch": 4, "nbs": 8, "val": False, "warmup_epochs": 0, "optimizer": "SGD"}


def trained(train: Train, *, cast_weights: bool, **arguments: Any) -> tuple[list[float], dict[str, torch.Tensor], int]:
    """Return a training's losses, its weights, and the launches of its second epoch."""
    losses: list[float] = []
    counting: list[Any] = []

    def begin(trainer: Any) -> None:
        if trainer.epoch == 1:
            counting.append(xpu_simulator.count())
            counting.append(counting[0].__enter__())

    def end(trainer: Any) -> None:
        if trainer.epoch == 1:
            counting[0].__exit__(None, None, None)

    def note(trainer: Any) -> None:
        losses.append(trainer.loss.item())

    callbacks = {"on_train_epoch_start": begin, "on_train_epoch_end": end, "on_train_batch_end": note}
    trainer = train(callbacks=callbacks, xpu_cast_weights=cast_weights, **{**ARGUMENTS, **arguments})
    assert not any("weight" in vars(module) for module in trainer.model.modules())
    return losses, {name: value.cpu() for name, value in trainer.model.state_dict().items()}, counting[1].launches


@pytest.mark.parametrize(
    "arguments",
    [
        {"amp": "bf16", "imgsz": 64},
        {"amp": "fp16", "imgsz": 64},
        {"amp": "bf16", "model": "yolo26n.yaml"},
        {"amp": "bf16", "task": "segment"},
        {"amp": "bf16", "task": "pose", "model": "yolo26n-pose.yaml"},
        {"amp": "bf16", "task": "classify", "freeze": 2, "batch": 3},
    ],
    ids=str,
)
def test_it_gives_what_autocast_gives_in_fewer_kernels(train: Train, arguments: dict[str, Any]) -> None:
    losses, weights, launches = trained(train, cast_weights=True, **arguments)
    expected, others, more = trained(train, cast_weights=False, **arguments)
    assert losses == expected
    assert [name for name, value in weights.items() if not torch.equal(value, others[name])] == []
    steps = len(losses) / 2
    assert more - launches > 60 * steps
