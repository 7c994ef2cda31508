"""Optimizers that users build, change, wrap and replace, beside plain Ultralytics on the same device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ..conftest import Train
from ..training import trainer_of
from . import own_layouts as own
from .test_own_layouts import around_first, layouts, losses, said

Change = Callable[[Any, Any], Any]
"""Takes a trainer and the optimizer that Ultralytics built; returns another one, or None."""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("channels_last_by_default")]


class Signs(torch.optim.Optimizer):
    """Goes by the sign of a running mean, element by element."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 0.1)
                    p.add_(mean.sign(), alpha=-group["lr"])


class Flattens(Signs):
    """Views gradients as rows."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    rows = p.grad.view(len(p), -1)
                    p.sub_((group["lr"] * rows / (rows.norm(dim=1, keepdim=True) + 1e-6)).view(p.shape))


class OrderInMemory(Flattens):
    """Does something else, without an error, where memory is in another order."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    weights = torch.linspace(0, 1, p.numel(), device=p.device)
                    p.as_strided((p.numel(),), (1,)).sub_(group["lr"] * weights * p.grad.as_strided((p.numel(),), (1,)))


class Wraps(torch.optim.Optimizer):
    """Holds another optimizer, as those that look ahead or sharpen do."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.base = torch.optim.AdamW(self.param_groups, lr=lr)
        self.param_groups = self.base.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


class NeedsClosure(Signs):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is None:
            raise RuntimeError("step needs a closure")
        super().step()


def trained(
    train: Train, change: Change, plain: bool = False, behind: bool = False, **arguments: Any
) -> tuple[list[float], Any]:
    """Train with a trainer that changes its optimizer; return each batch's loss, and the trainer.

    Args:
        behind: Whether the user's class stands behind this package's mixin, rather than in front of it.
        change: What the user does in `build_optimizer`.
    """
    from yolo_xpu_trainer import XPUTrainer

    upstream = trainer_of("detect", plain=True)

    def build_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer = super(theirs, self).build_optimizer(*args, **kwargs)
        return change(self, optimizer) or optimizer

    base = upstream if plain or behind else trainer_of("detect")
    theirs: Any = type("Theirs", (base,), {"build_optimizer": build_optimizer})
    trainer = type("Ours", (XPUTrainer, theirs), {}) if behind and not plain else theirs
    seen: list[float] = []
    callbacks = {
        "on_train_batch_end": lambda trainer: seen.append(float(trainer.loss.detach())),
        **arguments.pop("callbacks", {}),
    }
    settings: dict[str, Any] = {
        "optimizer": "AdamW",
        "amp": False,
        "seed": 1,
        "nbs": 4,
        "val": False,
        "imgsz": 64,
        **arguments,
    }
    return seen, train(trainer=trainer, plain=plain, device="xpu:0", callbacks=callbacks, **settings)


def check(train: Train, change: Change, expected: bool | None = True, **arguments: Any) -> Any:
    """Check that losses are plain Ultralytics' without our layout and kernels, and that it trains with them.

    Returns:
        The trainer with our layout and kernels.
    """
    reference, _ = trained(train, change, plain=True, **arguments)
    exact, _ = trained(train, change, xpu_channels_last=False, xpu_fused_optimizer=False, **arguments)
    assert exact == reference
    found, trainer = trained(train, change, **arguments)
    assert found[0] == pytest.approx(reference[0], rel=1e-3)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    if expected is not None:
        assert layouts(trainer) == {expected}
    return trainer


def nothing(trainer: Any, optimizer: Any) -> None:
    pass


@pytest.mark.parametrize("behind", [False, True], ids=["in front", "behind"])
def test_hooks_and_a_scheduler_reach_the_optimizer_in_use(train: Train, behind: bool) -> None:
    calls: list[Any] = []
    halved: list[Any] = []

    def change(trainer: Any, optimizer: Any) -> None:
        optimizer.register_step_post_hook(lambda o, args, kwargs: calls.append(o))
        trainer.own_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    def step(trainer: Any) -> None:
        before = [group["lr"] for group in trainer.optimizer.param_groups]
        trainer.own_scheduler.step()
        after = [group["lr"] for group in trainer.optimizer.param_groups]
        halved.append(after == pytest.approx([lr / 2 for lr in before]))

    trainer = check(train, change, behind=behind, callbacks={"on_train_epoch_end": step})
    assert calls[-1] is trainer.optimizer
    assert len(calls) == 6
    assert halved == [True] * 3
    assert all(group["fused"] for group in trainer.optimizer.param_groups)


@pytest.mark.parametrize(
    ("kind", "expected", "reason"),
    [
        (Signs, True, ""),
        (Wraps, True, ""),
        (Flattens, False, "the optimizer Flattens can't be tried in channels_last: view size"),
        (OrderInMemory, False, "the optimizer OrderInMemory makes other steps in channels_last"),
    ],
)
def test_an_optimizer_of_their_own_decides_by_a_trial(
    train: Train, log: list[logging.LogRecord], kind: Any, expected: bool, reason: str
) -> None:
    def change(trainer: Any, optimizer: Any) -> Any:
        return kind(optimizer.param_groups, lr=1e-3)

    trainer = check(train, change, expected)
    assert reason in "".join(said(log))
    assert bool(said(log)) is not expected
    assert getattr(trainer.optimizer, "steps", 2) in (0, 2)


@pytest.mark.parametrize("event", ["on_pretrain_routine_end", "on_train_start", "on_train_batch_start"])
@pytest.mark.parametrize(("kind", "expected"), [(torch.optim.RMSprop, True), (Flattens, False)])
def test_an_optimizer_that_a_callback_puts_in_place_is_tried(
    train: Train, log: list[logging.LogRecord], event: str, kind: Any, expected: bool
) -> None:
    def replace(trainer: Any) -> None:
        if type(trainer.optimizer) is not kind:
            groups = [{**group, "fused": None} for group in trainer.optimizer.param_groups]
            trainer.optimizer = kind(groups, lr=1e-3)

    check(train, nothing, expected, callbacks={event: replace})
    assert bool(said(log)) is not expected


def test_weights_that_are_added_to_a_running_optimizer_learn(train: Train) -> None:
    def add(trainer: Any) -> None:
        if trainer.epoch == 1:
            weight = torch.nn.Parameter(torch.ones(2, 3, 4, 5, device=trainer.device))
            trainer.model.register_parameter("own", weight)
            trainer.optimizer.add_param_group({"params": [weight], "initial_lr": 0.01, "lr": 0.01})
            trainer.scheduler.base_lrs.append(0.01)
            trainer.scheduler.lr_lambdas.append(trainer.lf)
            weight.grad = torch.ones_like(weight).to(memory_format=torch.channels_last)

    trainer = check(train, nothing, epochs=2, save=False, callbacks={"on_train_epoch_start": add})
    assert not (trainer.model.own == 1).any()


def test_layers_that_are_unfrozen_later_learn(train: Train) -> None:
    weights: list[Any] = []

    def unfreeze(trainer: Any) -> None:
        if trainer.epoch == 1:
            weight = trainer.model.model[0].conv.weight
            assert not weight.requires_grad
            weights.extend([weight, weight.detach().clone()])
            weight.requires_grad = True

    check(train, nothing, epochs=2, freeze=1, callbacks={"on_train_epoch_start": unfreeze})
    assert not torch.equal(*weights[-2:])


def test_gradients_that_a_user_assigns_may_have_any_layout(train: Train) -> None:
    def change(trainer: Any, optimizer: Any) -> None:
        def assign(optimizer: Any, args: Any, kwargs: Any) -> None:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad = p.grad.contiguous()

        optimizer.register_step_pre_hook(assign)

    check(train, change)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_the_learning_rate_may_be_a_tensor(train: Train, name: str) -> None:
    def change(trainer: Any, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(1e-3)

    check(train, change, optimizer=name, warmup_epochs=0)


def test_a_step_that_is_replaced_is_called(train: Train) -> None:
    calls: list[int] = []

    def replace(trainer: Any) -> None:
        step = trainer.optimizer.step

        def stepping(closure: Any = None) -> Any:
            calls.append(1)
            return step(closure)

        trainer.optimizer.step = stepping

    check(train, nothing, callbacks={"on_train_start": replace})
    assert len(calls) == 6


def test_a_closure_is_called_by_a_fused_optimizer(train: Train) -> None:
    calls: list[int] = []

    def replace(trainer: Any) -> None:
        def optimizer_step() -> None:
            def closure() -> Any:
                calls.append(1)
                return trainer.loss

            trainer.optimizer.step(closure)
            trainer.optimizer.zero_grad()

        trainer.optimizer_step = optimizer_step

    check(train, nothing, callbacks={"on_train_start": replace})
    assert len(calls) == 6


def test_an_optimizer_that_cant_be_tried_is_used_in_nchw(train: Train, log: list[logging.LogRecord]) -> None:
    def change(trainer: Any, optimizer: Any) -> Any:
        def optimizer_step() -> None:
            trainer.optimizer.step(lambda: trainer.loss)
            trainer.optimizer.zero_grad()

        trainer.optimizer_step = optimizer_step
        return NeedsClosure(optimizer.param_groups, lr=1e-3)

    check(train, change, False)
    assert "NeedsClosure can't be tried in channels_last: step needs a closure" in said(log)[0]


def test_what_users_chose_of_fused_and_foreach_is_kept(xpu: torch.device) -> None:
    from types import SimpleNamespace

    from yolo_xpu_trainer.devices import info
    from yolo_xpu_trainer.policies import optimizer as policy

    from ..options import options

    weights = [torch.nn.Parameter(torch.rand(3, device=xpu))]
    trainer = SimpleNamespace(xpu=SimpleNamespace(options=options(), device=info(0)))
    for chosen in ({"fused": False}, {"foreach": True}, {"foreach": False}):
        assert policy.xpu_prepare_optimizer(trainer, torch.optim.AdamW(weights, **chosen)) is None


def test_complex_weights_are_not_fused(train: Train, log: list[logging.LogRecord]) -> None:
    reference, _ = losses(train, around_first(own.Complex), plain=True)
    found, trainer = losses(train, around_first(own.Complex), xpu_fused_optimizer=True)
    assert found == pytest.approx(reference, rel=1e-3)
    assert not any(group["fused"] for group in trainer.optimizer.param_groups)
    assert any("not fused" in record.getMessage() for record in log)
