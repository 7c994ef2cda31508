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


@pytest.mark.parametrize("fault", ["wrong", "missing"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_kernel_that_is_wrong_or_missing_is_not_used(
    train: Train,
    nothing_known: None,
    log: list[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    checked: bool,
) -> None:
    fused = torch._fused_adamw_

    def wrong(params: list[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        fused(params, *args, **kwargs)
        if params[0].device.type == "xpu":
            params[0].add_(1e-3)

    def missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("Could not run 'aten::_fused_adamw_' with arguments from the 'XPU' backend.")

    monkeypatch.setattr(torch, "_fused_adamw_", {"wrong": wrong, "missing": missing}[fault])
    arguments = {"optimizer": "AdamW", "xpu_self_check": checked}
    seen = look(train, "on_train_epoch_end", lambda t: {g["fused"] for g in t.optimizer.param_groups}, **arguments)
    assert seen == {None}
    (line,) = [record.getMessage() for record in log if "AdamW, fused" in record.getMessage()]
    assert ("differs" if fault == "wrong" else "Could not run") in line


def optimizer_of(train: Train, name: str = "AdamW") -> Any:
    """Return an optimizer as a run has it after its first epoch."""
    return look(train, "on_train_epoch_end", lambda trainer: trainer.optimizer, optimizer=name)


@pytest.mark.parametrize("first", [True, False], ids=["in the first step", "later"])
def test_gradients_of_another_layout_end_the_fusing(
    xpu: torch.device, train: Train, log: list[logging.LogRecord], first: bool
) -> None:
    fused = optimizer_of(train)
    weight = torch.nn.Parameter(torch.rand(4, 3, 2, 2, device=xpu))
    fused.add_param_group({"params": [weight], "initial_lr": 0.1, "lr": 0.1})
    if not first:
        weight.grad = torch.rand(4, 3, 2, 2, device=xpu)
        fused.step()
        assert all(group["fused"] for group in fused.param_groups)
    weight.grad = torch.rand(4, 3, 2, 2, device=xpu).to(memory_format=torch.channels_last)
    before = weight.detach().clone()
    fused.step()
    assert not any(group["fused"] for group in fused.param_groups)
    assert not torch.equal(before, weight)
    assert any("another memory layout" in record.getMessage() for record in log)


def test_a_dimension_of_size_one_has_no_layout(xpu: torch.device, train: Train) -> None:
    fused = optimizer_of(train)
    weight = torch.nn.Parameter(torch.rand(4, 3, 1, 1, device=xpu))
    fused.add_param_group({"params": [weight]})
    weight.grad = (
        torch.rand(4, 3, 1, 1, device=xpu).to(memory_format=torch.channels_last).as_strided((4, 3, 1, 1), (3, 1, 7, 9))
    )
    fused.step()
    assert all(group["fused"] for group in fused.param_groups)


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_scaled_step_that_gives_up_fusing_is_as_one_that_was_never_fused(
    xpu: torch.device, train: Train, overflow: bool, unscaled: bool
) -> None:
    from yolo_xpu_trainer.policies.grad_scaler import GradScaler

    fused = optimizer_of(train)
    for group in fused.param_groups:
        for weight in group["params"]:
            weight.grad = None
    weight = torch.nn.Parameter(torch.rand(4, 3, 2, 2, device=xpu))
    twin = torch.nn.Parameter(weight.detach().clone())
    fused.add_param_group({"params": [weight]})
    defaults = {name: fused.defaults[name] for name in ("lr", "betas", "weight_decay")}
    plain = torch.optim.AdamW([twin], **defaults)
    for optimizer, parameter in ((plain, twin), (fused, weight)):
        scaler = GradScaler("xpu", init_scale=8.0)
        values = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).to(xpu)
        scaler.scale(torch.ones((), device=xpu))
        parameter.grad = (values * 8 if not overflow else values * float("inf")).to(memory_format=torch.channels_last)
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert torch.allclose(weight, twin)
    assert not any(group["fused"] for group in fused.param_groups)


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
