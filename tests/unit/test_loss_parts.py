"""A loss whose parts are joined at the end is the vector that they would have been written into."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xpu_simulator
from yolo_xpu_trainer.policies import loss_parts
from yolo_xpu_trainer.policies.foreground import known_mask
from yolo_xpu_trainer.policies.loss_parts import LossParts, torch_of_losses
from yolo_xpu_trainer.run import Stash

N = 4

Operation = Callable[[torch.Tensor, torch.Tensor], Any]

# What is done with a loss `v`, and numbers `x` that want gradients.
WRITES: dict[str, Operation] = {
    "v[0] = x": lambda v, x: operator.setitem(v, 0, x[0]),
    "v[1], v[3] = x": lambda v, x: (operator.setitem(v, 1, x[1] * 2), operator.setitem(v, 3, x[2])),
    "v[-1] = x": lambda v, x: operator.setitem(v, -1, x[1] + 1),
    "v[2] = bf16": lambda v, x: operator.setitem(v, 2, (x[0] * 3).bfloat16()),
    "v[2] = float64": lambda v, x: operator.setitem(v, 2, x[1].double() / 3),
    "v[0] = 7": lambda v, x: operator.setitem(v, 0, 7),
    "v[0] = [1]": lambda v, x: operator.setitem(v, 0, x[:1]),
    "v[0] = integer": lambda v, x: operator.setitem(v, 0, torch.tensor(3, device=v.device)),
    "v[0] = host": lambda v, x: operator.setitem(v, 0, torch.tensor(3.0)),
    "v[9] = x": lambda v, x: operator.setitem(v, 9, x[0]),
    "v[0:2] = x": lambda v, x: operator.setitem(v, slice(0, 2), x[:2]),
    "v[...] = x": lambda v, x: operator.setitem(v, ..., x[0]),
    "v[mask] = x": lambda v, x: operator.setitem(v, torch.arange(N, device=v.device) > 1, x[:2]),
    "v[0] = v[1]": lambda v, x: operator.setitem(v, 0, v[1]),
    "v[0] = v": lambda v, x: operator.setitem(v, 0, v),
    "v[True] = x": lambda v, x: operator.setitem(v, True, x[0]),
    "v[0] *= 3": lambda v, x: operator.setitem(v, 0, operator.imul(v[0], 3.5)),
    "v[1] *= x": lambda v, x: operator.setitem(v, 1, operator.imul(v[1], x[0])),
    "v[1] *= float64": lambda v, x: operator.setitem(v, 1, operator.imul(v[1], x[0].double())),
    "v[1] += x": lambda v, x: operator.setitem(v, 1, operator.iadd(v[1], x[2] * 0 + 1)),
    "v[1] += bf16": lambda v, x: operator.setitem(v, 1, operator.iadd(v[1], x[2].bfloat16())),
    "v[1] += [1, 2]": lambda v, x: operator.setitem(v, 1, operator.iadd(v[1], x[:2])),
    "v[1] += v[0]": lambda v, x: operator.setitem(v, 1, operator.iadd(v[1], v[0])),
    "v[3] -= 1": lambda v, x: operator.setitem(v, 3, operator.isub(v[3], 1)),
    "v[3] /= 3": lambda v, x: operator.setitem(v, 3, operator.itruediv(v[3], 3)),
    "a view *= 2": lambda v, x: operator.imul(v[1], 2),
    "a view.mul_": lambda v, x: v[1].mul_(x[0]),
    "a view.clamp_": lambda v, x: v[0].clamp_(max=1),
    "a view of a view": lambda v, x: v[0].view(1).mul_(2),
    "a view's data": lambda v, x: v[0].data.add_(1),
    "a view that stays": lambda v, x: (kept := v[0], operator.setitem(v, 0, x[2]), operator.setitem(v, 1, kept)),
    "a view, written to": lambda v, x: (
        operator.setitem(v, 1, x[0]),
        kept := v[0],
        operator.setitem(v, 0, x[2]),
        kept.mul_(3),
    ),
    "a view, copied to": lambda v, x: v[0].copy_(x[1]),
    "out=": lambda v, x: torch.mul(x[0].detach(), 2, out=v[2]),
    "v[1] = x without gradients": lambda v, x: without_gradients(operator.setitem, v, 1, x[2]),
    "v[0] *= 2 without gradients": lambda v, x: without_gradients(
        lambda: operator.setitem(v, 0, operator.imul(v[0], 2))
    ),
    "v[0] *= x without gradients": lambda v, x: without_gradients(lambda: v[0].mul_(x[1])),
    "detached, then written": lambda v, x: (v.detach(), operator.setitem(v, 1, x[2])),
    "a detached one is changed": lambda v, x: v.detach().mul_(10),
    "out=v": lambda v, x: torch.mul(v.detach() + 1, 2, out=v.detach()),
    "v *= 2": lambda v, x: operator.imul(v, 2),
    "v += x": lambda v, x: operator.iadd(v, x[0]),
    "v.mul_(2)": lambda v, x: v.mul_(2),
    "v[1:].mul_(2)": lambda v, x: v[1:].mul_(2),
    "v.zero_()": lambda v, x: v.zero_(),
}
READS: dict[str, Operation] = {
    "v": lambda v, x: v + 0,
    "v * 3": lambda v, x: v * 3,
    "3 * v": lambda v, x: 3 * v,
    "v * v": lambda v, x: v * v,
    "v * x": lambda v, x: v * x[0],
    "x * v": lambda v, x: x[0] * v,
    "v.mul(2)": lambda v, x: v.mul(2),
    "v.sum()": lambda v, x: v.sum(),
    "v.sum(0, keepdim=True)": lambda v, x: v.sum(0, keepdim=True),
    "torch.sum(v)": lambda v, x: torch.sum(v),
    "torch.sum(input=v)": lambda v, x: torch.sum(input=v),
    "torch.mul(x, v)": lambda v, x: torch.mul(x[1], v),
    "v.detach()": lambda v, x: v.detach(),
    "zip": lambda v, x: [float(number) for number in v.detach()],
    "without gradients, sum": lambda v, x: without_gradients(v.sum),
    "without gradients, floats": lambda v, x: without_gradients(lambda: [float(part) for part in v]),
    "without gradients, item": lambda v, x: without_gradients(lambda: v[0].item()),
    "in inference": lambda v, x: in_inference(lambda: (v * 2).tolist()),
    "v[1]": lambda v, x: v[1] * 1,
    "v[1] + v": lambda v, x: v[1] + v,
    "v[-1]": lambda v, x: v[-1] + x[0],
    "v[7]": lambda v, x: v[7],
    "v[1:]": lambda v, x: v[1:] * 2,
    "v[True]": lambda v, x: v[True] * 1,
    "mask": lambda v, x: known_mask(torch.ones(N, dtype=torch.bool, device=v.device)) * v,
    "stack": lambda v, x: torch.stack([v, v * 2]),
    "cat": lambda v, x: torch.cat((v, x)),
    "stack of parts": lambda v, x: torch.stack([v[0], x[0], v[1]]),
    "list": lambda v, x: [part * 1 for part in v],
    "tolist": lambda v, x: v.tolist(),
    "len": lambda v, x: (len(v), v.shape, v.dtype, v.device, v.requires_grad, v.dim(), v.numel()),
    "item": lambda v, x: (v[1].item(), float(v[2]), bool(v[0] > 1)),
    "repr": lambda v, x: repr(v * 1 if v.requires_grad else v),
    "max": lambda v, x: v.max(),
    "isnan": lambda v, x: torch.isnan(v).any(),
    "float": lambda v, x: v.double(),
    "clone": lambda v, x: v.clone(),
    "copy": lambda v, x: copy.copy(v).detach(),
    "deepcopy": lambda v, x: copy.deepcopy(v),
    "pickle": lambda v, x: pickle.loads(pickle.dumps(v)),
    "numpy": lambda v, x: v.detach().cpu().numpy().tolist(),
    "data": lambda v, x: v.data,
    "zeros_like": lambda v, x: torch.zeros_like(v),
    "where": lambda v, x: torch.where(v > 1, v, x[0]),
}
OPERATIONS = {**WRITES, **READS}


def without_gradients(compute: Callable[..., Any], *args: Any) -> Any:
    with torch.no_grad():
        return compute(*args)


def in_inference(compute: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return compute()


def told(result: Any) -> Any:
    if isinstance(result, (list, tuple)):
        return [told(part) for part in result]
    if not isinstance(result, torch.Tensor):
        return repr(result)
    assert type(result) is not LossParts
    return str(result.detach().cpu().tolist()), result.dtype, result.device, result.shape, result.requires_grad


def outcome(device: torch.device, zeros: torch.Tensor, names: list[str], grad: bool) -> list[Any]:
    """Return what can be told of operations on a loss, and at last of the loss and of its gradients."""
    leaf = torch.tensor([1.25, -2.5, 3.75, 0.3], device=device, requires_grad=grad)
    numbers = leaf * 1  # as a loss's parts are, which are no leaves
    assert not isinstance(zeros, LossParts) or zeros._is_apart
    found: list[Any] = []
    for name in names:
        try:
            result = OPERATIONS[name](zeros, numbers)
            found.append(told(result) if name in READS else None)
        except Exception as error:
            found.append((type(error), str(error)))
    weighted = zeros * torch.arange(1.0, N + 1, device=device)
    found.append(told(weighted))
    if weighted.requires_grad:
        try:
            weighted.sum().backward()
        except RuntimeError as error:
            found.append((type(error), str(error).partition(":")[0]))
        found.append(None if leaf.grad is None else told(leaf.grad))
    return found


def same(device: torch.device, names: list[str], grad: bool = True) -> None:
    plain = torch.zeros(N, device=device)
    parts = LossParts.of_zeros(torch.zeros(N, device=device))
    assert outcome(device, parts, names, grad) == outcome(device, plain, names, grad), names


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("grad", [True, False])
def test_every_operation_gives_what_it_gives_of_a_vector(xpu: torch.device, name: str, grad: bool) -> None:
    same(xpu, [name], grad)
    same(xpu, ["v[0] = x", "v[1], v[3] = x", name, "v[0] *= 3", name, "v[2] = bf16", "v * 3"], grad)
    same(xpu, ["v[0] = x", "v[1], v[3] = x", name], grad)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(list(OPERATIONS)), min_size=1, max_size=8))
def test_sequences_of_operations_give_what_they_give_of_a_vector(xpu: torch.device, names: list[str]) -> None:
    same(xpu, names)


def test_a_loss_takes_fewer_kernels_forwards_and_backwards(xpu: torch.device) -> None:
    launches = []
    for zeros in (torch.zeros(3, device=xpu), LossParts.of_zeros(torch.zeros(3, device=xpu))):
        numbers = [torch.tensor(float(i), device=xpu, requires_grad=True) for i in range(3)]
        with xpu_simulator.count() as counts:
            for i, number in enumerate(numbers):
                zeros[i] = number
            for i in range(3):
                zeros[i] *= 2.0
            (zeros * 4).sum().backward()
        launches.append(counts.launches)
        assert [float(number.grad) for number in numbers if number.grad is not None] == [8.0] * 3
    plain, ours = launches
    assert ours < plain / 3


def test_a_number_that_is_changed_after_it_was_written_ends_it(xpu: torch.device) -> None:
    """So that a run goes on without the policy, instead of with another loss."""
    vector = LossParts.of_zeros(torch.zeros(3, device=xpu))
    total = torch.ones((), device=xpu)
    vector[0] = total
    total += 1
    for read in (vector.sum, lambda: vector[0] + 1, lambda: operator.imul(vector[0], 2)):
        with pytest.raises(RuntimeError, match="after it was written"):
            read()


@pytest.mark.parametrize(
    ("size", "options", "is_a_loss"),
    [
        ((3,), {}, True),
        ((9,), {}, False),
        ((1,), {}, False),
        ((3, 4), {}, False),
        ((torch.Size([3]),), {}, False),
        ((3,), {"requires_grad": True}, False),
        ((3,), {"dtype": torch.long}, False),
        ((3,), {"device": "cpu"}, False),
    ],
)
def test_only_what_may_be_a_loss_is_one(
    xpu: torch.device, size: tuple[Any, ...], options: dict[str, Any], is_a_loss: bool
) -> None:
    run: Any = SimpleNamespace(stash=Stash())
    zeros = torch_of_losses.replacement(run, torch).zeros
    assert type(zeros(3, device=xpu)) is torch.Tensor  # outside of Ultralytics' own loss
    run.stash[loss_parts._IN_LOSS] = True
    made = zeros(*size, **{"device": xpu, **options})
    assert type(made) is (LossParts if is_a_loss else torch.Tensor)
    assert torch.equal(made * 1, torch.zeros(*size, **{"device": xpu, **options}))
