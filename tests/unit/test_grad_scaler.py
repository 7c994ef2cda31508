"""The gradient scaler that needs no float64."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import xpu_simulator
from yolo_xpu_trainer import devices
from yolo_xpu_trainer.policies.grad_scaler import GradScaler

arc_a770 = pytest.mark.xpu_profile("arc-a770")

INF, NAN = float("inf"), float("nan")

Make = Callable[..., torch.amp.GradScaler]


def learn(device: str, make: Make, *, gradients: tuple[float, ...], **options: Any) -> list[dict[str, Any]]:
    """Take a step for each factor on the loss; return state, weights and gradients after each."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    x = torch.rand(8, 4)
    model, x = model.to(device), x.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = make(torch.device(device).type, init_scale=256.0, growth_interval=2, **options)
    history = []
    for factor in gradients:
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean() * factor).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        scaler.step(optimizer)
        scaler.update()
        history.append(
            {
                "state": scaler.state_dict(),
                "scale": scaler.get_scale(),
                "norm": norm.cpu(),
                "weight": model.weight.detach().cpu().clone(),
            }
        )
    return history


SEQUENCES = {
    "all is well": (1.0,) * 6,
    "an overflow now and then": (1.0, INF, 1.0, 1.0, NAN, 1.0, 1.0, 1.0),
    "one overflow after another": (INF,) * 5,
    "large and small": (1e-6, 1e3, 1e-8, 1.0),
}


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], **tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a["state"] == b["state"]
        assert a["scale"] == b["scale"]
        torch.testing.assert_close(a["norm"], b["norm"], equal_nan=True, **tolerance)
        torch.testing.assert_close(a["weight"], b["weight"], **tolerance)


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_it_scales_steps_skips_and_grows_as_pytorchs_own(xpu: torch.device, sequence: str) -> None:
    if not devices.info(0).has_fp64:
        pytest.skip("PyTorch's own scaler needs float64")
    gradients = SEQUENCES[sequence]
    ours = learn("xpu:0", GradScaler, gradients=gradients)
    assert_same(ours, learn("xpu:0", torch.amp.GradScaler, gradients=gradients), rtol=0, atol=0)


@arc_a770
def test_pytorchs_own_fails_where_there_is_no_float64(xpu: torch.device) -> None:
    with pytest.raises(RuntimeError, match="fp64"):
        learn("xpu:0", torch.amp.GradScaler, gradients=(1.0,))


@arc_a770
@pytest.mark.xpu_hardware
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_it_needs_no_float64_and_gives_the_numbers_of_the_cpu(xpu: torch.device, sequence: str) -> None:
    gradients = SEQUENCES[sequence]
    ours = learn("xpu:0", GradScaler, gradients=gradients)
    assert_same(ours, learn("cpu", torch.amp.GradScaler, gradients=gradients), rtol=1e-5, atol=1e-6)


@arc_a770
def test_it_runs_no_float64_kernel(xpu: torch.device) -> None:
    with xpu_simulator.count() as done:
        learn("xpu:0", GradScaler, gradients=SEQUENCES["an overflow now and then"])
    assert done.launches
    assert done.float64_kernels == {}


@arc_a770
@pytest.mark.xpu_hardware
def test_its_scale_can_be_set_and_its_state_loaded_into_pytorchs_own_and_back(xpu: torch.device) -> None:
    ours = GradScaler("xpu", init_scale=512.0)
    parameter = nn.Parameter(torch.ones(2, device=xpu))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    ours.scale(parameter.sum()).backward()
    ours.step(optimizer)
    ours.update(64.0)
    assert ours.get_scale() == 64.0
    ours.update(torch.tensor(32.0, device=xpu))
    assert ours.get_scale() == 32.0
    theirs = torch.amp.GradScaler("cpu")
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state_dict() == ours.state_dict()
    for resumed in (GradScaler("xpu"), ours):
        resumed.load_state_dict({**theirs.state_dict(), "scale": 16.0})
        parameter.grad = None
        resumed.scale(parameter.sum()).backward()
        assert parameter.grad.tolist() == [16.0, 16.0]
        resumed.step(optimizer)
        resumed.update()
        assert resumed.get_scale() == 16.0
        assert parameter.grad.tolist() == [1.0, 1.0]


@pytest.mark.xpu_hardware
def test_it_does_nothing_when_it_is_not_enabled(xpu: torch.device) -> None:
    scaler = GradScaler("xpu", enabled=False)
    loss = torch.ones((), device=xpu)
    assert scaler.scale(loss) is loss
    assert scaler.state_dict() == {}
    assert scaler.get_scale() == 1.0


@pytest.mark.xpu_hardware
def test_a_scaled_loss_is_a_plain_tensor(xpu: torch.device) -> None:
    scaler = GradScaler("xpu")
    loss = scaler.scale(torch.ones((), device=xpu, requires_grad=True) * 2)
    assert type(loss) is torch.Tensor
    assert all(type(each) is torch.Tensor for each in scaler.scale([loss, loss]))


class NoDoubleFactors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what `AmpUpdateScaleKernelFunctor` needs: it multiplies by doubles (torch-xpu-ops, AmpKernels.cpp)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten._amp_update_scale_:
            raise RuntimeError("Required aspect fp64 is not supported on the device")
        return func(*args, **(kwargs or {}))


@arc_a770
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_its_scale_grows_and_shrinks_without_kernels_that_multiply_by_doubles(xpu: torch.device, sequence: str) -> None:
    gradients = SEQUENCES[sequence]
    with NoDoubleFactors(), xpu_simulator.count() as done:  # type: ignore[no-untyped-call]
        ours = learn("xpu:0", GradScaler, gradients=gradients)
    assert_same(ours, learn("cpu", torch.amp.GradScaler, gradients=gradients), rtol=1e-5, atol=1e-6)
    assert done.float64_kernels == {}


@pytest.mark.parametrize("start", [2.0**127, 2.0**-149, 3.0, 1.0])
@pytest.mark.parametrize(("growth", "backoff"), [(2.0, 0.5), (16.0, 0.25)])
def test_its_scale_is_pytorchs_bit_for_bit_up_to_the_limits_of_float32(
    xpu: torch.device, start: float, growth: float, backoff: float
) -> None:
    def scales(make: Make, device: str) -> list[dict[str, Any]]:
        settings = {"init_scale": start, "growth_factor": growth, "backoff_factor": backoff, "growth_interval": 2}
        scaler = make(device, **settings)
        scaler.scale(torch.ones((), device=device))
        found = []
        for factor in (0.0, 0.0, 0.0, INF, 0.0, 0.0, NAN, INF):
            parameter = nn.Parameter(torch.ones((), device=device))
            parameter.grad = torch.ones((), device=device) * factor
            scaler.step(torch.optim.SGD([parameter], lr=0.1))
            scaler.update()
            found.append(scaler.state_dict())
        return found

    assert scales(GradScaler, "xpu") == scales(torch.amp.GradScaler, "cpu")


def test_an_update_of_its_scale_waits_for_nothing(xpu: torch.device) -> None:
    scaler = GradScaler("xpu")
    parameter = nn.Parameter(torch.ones(2, device=xpu))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimizer)
    with xpu_simulator.count() as done:
        scaler.update()
    assert done.launches
    assert not sum(done.syncs.values())


def test_it_is_copied_and_pickled_with_its_scale(xpu: torch.device) -> None:
    scaler = GradScaler("xpu", init_scale=512.0)
    scaler.scale(torch.ones((), device=xpu))
    for twin in (copy.deepcopy(scaler), pickle.loads(pickle.dumps(scaler))):
        assert twin.state_dict() == scaler.state_dict()
