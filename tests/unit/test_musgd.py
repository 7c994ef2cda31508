"""MuSGD that takes all weights at once makes the updates of one that takes them one by one, but for bf16's rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import xpu_simulator
from yolo_xpu_trainer.policies import musgd

optim = pytest.importorskip("ultralytics.optim.muon")


def zeropower(matrix: torch.Tensor) -> torch.Tensor:
    """Orthogonalise one matrix as Ultralytics 8.4.60 does."""
    x = matrix.bfloat16()
    x /= x.norm() + 1e-7
    if matrix.size(0) > matrix.size(1):
        x = x.T
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.size(0) > matrix.size(1) else x


@torch.no_grad()
def one_by_one(self: Any, closure: Any = None) -> None:
    """Step as Ultralytics 8.4.60 does."""
    for group in self.param_groups:
        lr, momentum, nesterov = group["lr"], group["momentum"], group["nesterov"]
        for p in (p for p in group["params"] if p.grad is not None):
            grad, state = p.grad, self.state[p]
            if len(state) == 0:
                state["momentum_buffer"] = torch.zeros_like(p)
                if group["use_muon"]:
                    state["momentum_buffer_SGD"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"]
            rate = lr
            if group["use_muon"]:
                buffer.lerp_(grad, 1 - momentum)
                update = grad.lerp(buffer, momentum) if nesterov else buffer
                update = zeropower(update.reshape(len(update), -1))
                update *= max(1, grad.size(-2) / grad.size(-1)) ** 0.5
                p.add_(update.reshape(p.shape), alpha=-(lr * self.muon))
                buffer, rate = state["momentum_buffer_SGD"], lr * self.sgd
            if group["weight_decay"] != 0:
                grad = grad.add(p, alpha=group["weight_decay"])
            buffer.mul_(momentum).add_(grad)
            p.add_(grad.add(buffer, alpha=momentum) if nesterov else buffer, alpha=-rate)


SHAPES = [(16, 3, 3, 3), (32, 16, 3, 3), (16, 32, 1, 1), (64, 32, 1, 1), (32, 16, 1, 1), (8, 1, 3, 3), (80, 64), (4, 9)]


def optimizer(xpu: torch.device, layout: torch.memory_format) -> Any:
    drawn = torch.Generator().manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=drawn).to(xpu)) for shape in SHAPES]
    for weight in matrices:
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=layout)
    others = [torch.nn.Parameter(torch.randn(16, generator=drawn).to(xpu)) for _ in range(3)]
    common = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
    return optim.MuSGD(
        [
            {"params": matrices, "use_muon": True, "weight_decay": 5e-4, **common},
            {"params": others, "use_muon": False, "weight_decay": 0.0, **common},
        ],
        muon=0.2,
        sgd=1.0,
    )


def weights(made: Any) -> list[torch.nn.Parameter]:
    return [weight for group in made.param_groups for weight in group["params"]]


def draw(made: Any, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    for weight in weights(made):
        weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=drawn))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_updates_are_those_of_each_weight_by_itself_but_for_rounding(
    xpu: torch.device, layout: torch.memory_format
) -> None:
    expected, seen = optimizer(xpu, layout), optimizer(xpu, layout)
    seen = musgd.batched(seen)
    before = [weight.clone() for weight in weights(seen)]
    for step in range(3):
        for made in (expected, seen):
            draw(made, step)
        one_by_one(expected)
        seen.step()
    for start, one, other in zip(before, weights(expected), weights(seen), strict=True):
        moved = (one - start).norm()
        assert (one - other).norm() < 5e-3 * moved, one.shape
        assert one.stride() == other.stride()
    assert seen.state_dict()["state"].keys() == expected.state_dict()["state"].keys()
    for mine, theirs in zip(seen.state.values(), expected.state.values(), strict=True):
        assert mine.keys() == theirs.keys()


def test_singular_values_come_near_one(xpu: torch.device) -> None:
    drawn = torch.Generator().manual_seed(0)
    for shape, found in zip(
        SHAPES, musgd.orthogonal([torch.randn(s, generator=drawn).to(xpu) for s in SHAPES]), strict=True
    ):
        assert found.shape == shape
        values = torch.linalg.svdvals(found.cpu().flatten(1).float()) / max(1, shape[-2] / shape[-1]) ** 0.5
        assert ((values > 0.3) & (values < 1.5)).all(), (shape, values)


def test_it_is_one_class_and_its_hooks_are_called(xpu: torch.device) -> None:
    made = musgd.batched(optimizer(xpu, torch.contiguous_format))
    assert isinstance(made, optim.MuSGD)
    assert type(made).__name__ == "MuSGD"
    seen: list[int] = []
    made.register_step_pre_hook(lambda *_: seen.append(1))
    draw(made, 0)
    made.step()
    assert seen == [1]
    other = optimizer(xpu, torch.contiguous_format)
    other.load_state_dict(made.state_dict())
    made.load_state_dict(other.state_dict())
    draw(made, 1)
    made.step()


def test_it_takes_a_fraction_of_the_kernels(xpu: torch.device) -> None:
    one, other = (
        optimizer(xpu, torch.channels_last),
        musgd.batched(optimizer(xpu, torch.channels_last)),
    )
    counted = []
    for step in (lambda: one_by_one(one), other.step):
        draw(one, 0)
        draw(other, 0)
        with xpu_simulator.count() as counts:
            step()
        counted.append(counts.launches)
    assert counted[1] < 0.5 * counted[0]


@pytest.mark.parametrize("resumed", [False, True])
def test_updates_are_those_of_the_installed_ultralytics_but_for_rounding(xpu: torch.device, resumed: bool) -> None:
    # Contiguous: before 8.4.190 Ultralytics' own takes nothing else.
    theirs, ours = optimizer(xpu, torch.contiguous_format), musgd.batched(optimizer(xpu, torch.contiguous_format))
    for made in (theirs, ours):
        draw(made, 0)
        made.step()
    if resumed:  # each from what the other saved
        saved = [copy.deepcopy(made.state_dict()) for made in (theirs, ours)]
        ours.load_state_dict(saved[0])
        theirs.load_state_dict(saved[1])
    before = [[p.clone() for p in weights(made)] for made in (theirs, ours)]
    for made in (theirs, ours):
        draw(made, 1)
        made.step()
    moved = [
        [now - start for now, start in zip(weights(made), starts, strict=True)]
        for made, starts in zip((theirs, ours), before, strict=True)
    ]
    for one, other in zip(*moved, strict=True):
        assert (one - other).norm() < 5e-3 * one.norm(), one.shape


def test_a_small_matrix_is_not_padded_to_the_height_of_a_large_one(xpu: torch.device) -> None:
    updates = [torch.randn(rows, 64, device=xpu) for rows in (64, 32, 4, 3, 1)]
    with xpu_simulator.count() as counts:
        musgd.orthogonal(updates)
    norms = [n for name, n in counts.launches_by_op.items() if "vector_norm" in name]
    assert norms == [2]  # 64, 32 and 4; 3 and 1
