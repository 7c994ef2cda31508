"""Fused optimizers: where the device has them, and where they must stand down."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from ..conftest import Train
from .test_channels_last import look


@pytest.mark.parametrize(
    ("name", "expected"), [("AdamW", True), ("Adam", True), ("SGD", True), ("MuSGD", None), ("RMSProp", None)]
)
def test_every_group_is_fused_where_there_is_a_kernel(xpu: Any, train: Train, name: str, expected: bool | None) -> None:
    def groups(trainer: Any) -> tuple[set[Any], set[str], bool]:
        found = trainer.optimizer.param_groups
        same = trainer.scheduler.optimizer is trainer.optimizer
        return {group.get("fused") for group in found}, {group["param_group"] for group in found}, same

    fused, names, same = look(train, "on_train_epoch_end", groups, optimizer=name)
    assert fused == {expected}
    assert names >= {"weight", "bn", "bias"}
    assert same


def test_the_switch_leaves_ultralytics_optimizer(xpu: Any, train: Train) -> None:
    def groups(trainer: Any) -> set[Any]:
        return {group["fused"] for group in trainer.optimizer.param_groups}

    assert look(train, "on_train_epoch_end", groups, optimizer="AdamW", xpu_fused_optimizer=False) == {None}


def test_a_kernel_that_computes_something_else_is_not_used(xpu: Any, train: Train, monkeypatch: Any) -> None:
    from yolo_xpu_trainer.policies import optimizer

    assert optimizer.fused_agrees.__wrapped__(torch.optim.AdamW, xpu)
    fused = torch._fused_adamw_

    def wrong(params: list[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        fused(params, *args, **kwargs)
        if params[0].device.type == "xpu":
            params[0].add_(1e-3)

    monkeypatch.setattr(torch, "_fused_adamw_", wrong)
    assert not optimizer.fused_agrees.__wrapped__(torch.optim.AdamW, xpu)

    def missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("Could not run 'aten::_fused_adamw_' with arguments from the 'XPU' backend.")

    monkeypatch.setattr(torch, "_fused_adamw_", missing)
    assert not optimizer.fused_agrees.__wrapped__(torch.optim.AdamW, xpu)


def test_gradients_of_another_layout_end_the_fusing_before_the_first_step(
    xpu: torch.device, log: list[logging.LogRecord]
) -> None:
    from yolo_xpu_trainer.policies.optimizer import _FirstStep

    weight = torch.nn.Parameter(torch.rand(4, 3, 2, 2, device=xpu))
    fused = torch.optim.AdamW([weight], fused=True)
    fused.register_step_pre_hook(_FirstStep())
    weight.grad = torch.rand(4, 3, 2, 2, device=xpu).to(memory_format=torch.channels_last)
    fused.step()
    assert not fused.param_groups[0]["fused"]
    assert any("another memory layout" in record.getMessage() for record in log)


def test_an_overflow_skips_the_step_without_a_wait(xpu: Any, train: Train) -> None:
    import xpu_simulator

    def step(trainer: Any) -> tuple[bool, int]:
        weights = [p for p in trainer.model.parameters() if p.requires_grad]
        before = [w.detach().clone() for w in weights]
        trainer.scaler.scale(torch.ones((), device=xpu))  # which makes it ready
        for weight in weights:
            weight.grad = torch.full_like(weight, float("inf"))
        with xpu_simulator.count() as counts:
            trainer.optimizer_step()
        return all(torch.equal(a, b) for a, b in zip(before, weights, strict=True)), sum(counts.syncs.values())

    assert look(train, "on_train_start", step, optimizer="AdamW", amp="fp16") == (True, 0)
