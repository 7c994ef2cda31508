"""The averaged weights are those of older Ultralytics, bit for bit, in fewer kernels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from ultralytics.utils.torch_utils import ModelEMA

import xpu_simulator
from yolo_xpu_trainer.policies import averaging


def one_by_one(self: Any, model: torch.nn.Module) -> None:
    """Update as Ultralytics 8.3.0 does."""
    self.updates += 1
    d = self.decay(self.updates)
    current = model.state_dict()
    for k, v in self.ema.state_dict().items():
        if v.dtype.is_floating_point:
            v *= d
            v += (1 - d) * current[k].detach()


def model(xpu: torch.device) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 16, 3))
    return layers.to(xpu, memory_format=torch.channels_last)


@pytest.mark.parametrize("bytes_", [1, 1000, averaging._BYTES])
def test_it_is_that_of_each_weight_by_itself(xpu: torch.device, monkeypatch: pytest.MonkeyPatch, bytes_: int) -> None:
    monkeypatch.setattr(averaging, "_BYTES", bytes_)
    live = model(xpu)
    expected, seen = ModelEMA(live), ModelEMA(live)
    update = averaging.update.replacement(None, one_by_one)
    for _ in range(3):
        with torch.no_grad():
            for parameter in live.parameters():
                parameter.add_(torch.randn_like(parameter))
            one_by_one(expected, live)
            update(seen, live)
    assert seen.updates == expected.updates == 3
    for name, value in expected.ema.state_dict().items():
        assert torch.equal(seen.ema.state_dict()[name], value), name


def test_it_takes_three_kernels(xpu: torch.device) -> None:
    live = model(xpu)
    averaged = ModelEMA(live)
    with xpu_simulator.count() as counts, torch.no_grad():
        averaging.update.replacement(None, one_by_one)(averaged, live)
    assert counts.launches == 3


def test_an_average_that_is_switched_off_stays(xpu: torch.device) -> None:
    live = model(xpu)
    averaged = ModelEMA(live)
    averaged.enabled = False
    before = copy.deepcopy(averaged.ema.state_dict())
    averaging.update.replacement(None, lambda self, model: None)(averaged, live)
    assert averaged.updates == 0
    assert all(torch.equal(value, before[name]) for name, value in averaged.ema.state_dict().items())


def test_weights_of_several_names_are_left_to_ultralytics(xpu: torch.device) -> None:
    tied = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).to(xpu)
    tied[1].weight = tied[0].weight
    averaged = ModelEMA(tied)
    asked: list[int] = []
    averaging.update.replacement(None, lambda self, model: asked.append(self.updates))(averaged, tied)
    assert asked == [0]


def test_a_compiled_model_has_the_names_of_its_own(xpu: torch.device) -> None:
    live = model(xpu)
    averaged = ModelEMA(live)
    averaging.update.replacement(None, one_by_one)(averaged, torch.compile(live))
    assert averaged.updates == 1


def test_only_ultralytics_own_that_goes_one_by_one_is_replaced() -> None:
    assert averaging.update.needed is not None
    assert not averaging.update.needed(one_by_one)  # of a user's
    assert not averaging.update.is_needed()  # of the installed one
