"""The time that events tell: of a made-up GPU, by what was done on it and nothing else."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch

import xpu_simulator
from xpu_simulator.profiles import PROFILES, Costs


@pytest.fixture
def elapsed(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that measures, by two events, another one on a GPU with costs."""

    def measure(costs: Costs | None, work: Any) -> float:
        monkeypatch.setitem(PROFILES, "costly", replace(PROFILES["arc-b580"], costs=costs))
        with xpu_simulator.use_profile("costly"):
            begin, end = (torch.xpu.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            return float(begin.elapsed_time(end))

    return measure


def convolve(memory_format: torch.memory_format) -> None:
    image = torch.ones(1, 8, 4, 4, device="xpu").contiguous(memory_format=memory_format)
    weight = torch.ones(8, 8, 3, 3, device="xpu", requires_grad=True)
    torch.nn.functional.conv2d(image, weight).sum().backward()


def test_a_launch_a_sync_and_a_byte_have_their_costs(elapsed: Any) -> None:
    def work() -> None:
        x = torch.ones(256, device="xpu")  # a kernel
        (x + 1).sum().item()  # two kernels and a sync
        time.sleep(0.01)

    assert elapsed(Costs(launch=1e-3), work) == pytest.approx(3)
    assert elapsed(Costs(sync=1e-3), work) == pytest.approx(1)
    assert elapsed(Costs(byte=1e-3), lambda: torch.ones(256).to("xpu")) == pytest.approx(1024)
    assert elapsed(Costs(), work) == 0


def test_an_operator_may_have_a_cost_of_its_own(elapsed: Any) -> None:
    costs = Costs(launch=1e-3, operators={"aten::add.out": 5e-3, "aten::add.Tensor": 5e-3})
    x = torch.ones(8)
    assert elapsed(costs, lambda: x.to("xpu") + 1) == pytest.approx(6)
    assert elapsed(costs, lambda: x.to("xpu") * 2) == pytest.approx(1)


def test_convolutions_in_channels_last_have_a_cost_both_ways(elapsed: Any) -> None:
    costs = Costs(channels_last=1.0)
    assert elapsed(costs, lambda: convolve(torch.channels_last)) == pytest.approx(2000)
    assert elapsed(costs, lambda: convolve(torch.contiguous_format)) == 0


def test_without_costs_events_tell_the_wall_clock_s_time(elapsed: Any) -> None:
    assert elapsed(None, lambda: time.sleep(0.02)) >= 20
