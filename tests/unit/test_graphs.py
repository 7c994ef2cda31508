"""A captured forward and backward are the module's, whatever its weights and its results are like."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from yolo_xpu_trainer.policies.graphs.capture import Captured
from yolo_xpu_trainer.policies.graphs.check import NotGraphedError, checked

pytestmark = pytest.mark.needs("torch.xpu.make_graphed_callables")


class Odd(torch.nn.Module):
    """A weight that two layers share, one without a use, one that isn't trained, and results of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.second = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.norm = torch.nn.BatchNorm2d(3)
        self.unused = torch.nn.Linear(2, 2)
        self.frozen = torch.nn.Linear(8, 8).requires_grad_(False)

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        features = self.norm(self.second(torch.relu(self.first(images))))
        best, where = self.frozen(features).max(1)
        return {"features": features, "best": [best, where], "stride": 8, "detached": features.detach().sum()}


def images_of(xpu: torch.device) -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, device=xpu).to(memory_format=torch.channels_last)


def captured_from(model: torch.nn.Module, images: torch.Tensor) -> Captured:
    return checked(model, model.forward, images, False, nullcontext)


def test_gradients_add_up_as_without_graphs(xpu: torch.device) -> None:
    torch.manual_seed(0)
    model = Odd().to(xpu)
    other = copy.deepcopy(model)
    captured = captured_from(model, images_of(xpu))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))
    for step in range(4):
        images = images_of(xpu)
        held = captured.weights.held()
        assert held is not None
        results = captured(images, held), other(images)
        for result in results:
            loss = result["features"].square().sum() * (step != 1) + result["best"][0].sum() * (step != 2)
            if step == 3:
                loss = result["best"][0].sum()  # nothing of the features
            loss.backward()
        ours, theirs = results
        assert ours["stride"] == 8
        assert torch.equal(ours["best"][1], theirs["best"][1])
        assert torch.equal(ours["detached"], theirs["detached"])
        assert not ours["detached"].requires_grad
        for (name, weight), expected in zip(model.named_parameters(), other.parameters(), strict=True):
            assert (weight.grad is None) is (expected.grad is None), name
            if step < 3:
                assert weight.grad is None or torch.equal(weight.grad, expected.grad), name
            elif weight.grad is not None:  # a gradient of zeros, which is added, has another layout than none
                torch.testing.assert_close(weight.grad, expected.grad)
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))


def test_a_backward_through_what_is_overwritten_is_an_error(xpu: torch.device) -> None:
    model, images = Odd().to(xpu), images_of(xpu)
    captured = captured_from(model, images)
    held = captured.weights.held()
    assert held is not None
    before, after = captured(images, held), captured(images, held)
    after["features"].sum().backward(retain_graph=True)
    for result in (before, after):
        with pytest.raises(RuntimeError, match=r"what its forward kept is overwritten\. Set xpu_graphs=False"):
            result["features"].sum().backward()


def test_a_forward_that_counts_on_the_host_is_not_replayed(xpu: torch.device) -> None:
    model = Odd().to(xpu)
    model.register_buffer("seen", torch.zeros(()))

    def forward(images: torch.Tensor) -> Any:
        model.seen += images.shape[0]
        return model(images)

    with pytest.raises(NotGraphedError, match="changes what is kept on the host"):
        checked(model, forward, images_of(xpu), False, nullcontext)
    assert model.seen == 0


def test_a_weight_that_is_used_beside_its_module_is_found(xpu: torch.device) -> None:
    model = Odd().to(xpu)

    def forward(images: torch.Tensor) -> Any:
        return model(images)["features"] * model.first._parameters["bias"].sum()

    with pytest.raises(NotGraphedError, match="a replay differs from the model by"):
        checked(model, forward, images_of(xpu), False, nullcontext)
