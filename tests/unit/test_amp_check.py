"""The check that a model can be trained in reduced precision."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from yolo_xpu_trainer import devices
from yolo_xpu_trainer.policies.amp_check import check
from yolo_xpu_trainer.run import Precision, Run

from ..options import options

arc_a770 = pytest.mark.xpu_profile("arc-a770")

INF, NAN = float("inf"), float("nan")


@pytest.fixture
def run(xpu: torch.device) -> Callable[..., Run]:
    """Return a function that makes a run of some precision."""

    def make(name: Literal["bf16", "fp16", "fp32"], requested: bool = False) -> Run:
        return Run(devices.info(0), (0,), Precision(name, "a test says so", requested), options())

    return make


class Amplifier(nn.Module):
    """Gives numbers that float32 can hold and float16 can't."""

    def __init__(self, gain: float = 1e6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            self.conv.weight.fill_(gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def detector(xpu: torch.device, name: str = "yolo11n.yaml") -> nn.Module:
    torch.manual_seed(0)
    return DetectionModel(name, nc=3, verbose=False).to(xpu)


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolo26n.yaml", "yolov8n.yaml"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_sound_model_passes(
    xpu: torch.device, run: Callable[..., Run], precision: str, name: str, log: list[logging.LogRecord]
) -> None:
    run_ = run(precision)
    assert check(run_, detector(xpu, name)) is True
    assert run_.precision.name == precision
    assert not [r.getMessage() for r in log if r.levelno >= logging.WARNING]


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("broken", ["overflow", "nan"])
def test_a_model_that_fp16_breaks_is_trained_in_fp32_and_that_is_said(
    xpu: torch.device, run: Callable[..., Run], broken: str, log: list[logging.LogRecord]
) -> None:
    model: nn.Module = Amplifier()
    if broken == "nan":
        model = nn.Sequential(model, nn.Softmax(1))  # of infinities
    run_ = run("fp16")
    assert check(run_, model.to(xpu)) is False
    assert run_.precision.name == "fp32"
    assert run_.precision.dtype is None
    (warning,) = [r.getMessage() for r in log]
    assert "fp16" in warning
    assert "fp32" in warning
    assert "amp='fp16'" in warning


@pytest.mark.xpu_hardware
def test_bf16_bears_what_fp16_does_not(xpu: torch.device, run: Callable[..., Run]) -> None:
    run_ = run("bf16")
    assert check(run_, Amplifier().to(xpu)) is True
    assert run_.precision.name == "bf16"


@pytest.mark.xpu_hardware
def test_a_precision_that_the_user_named_is_not_overruled(
    xpu: torch.device, run: Callable[..., Run], log: list[logging.LogRecord]
) -> None:
    run_ = run("fp16", requested=True)
    assert check(run_, Amplifier().to(xpu)) is True
    assert run_.precision.name == "fp16"
    assert log == []


@pytest.mark.xpu_hardware
def test_fp32_needs_no_check(xpu: torch.device, run: Callable[..., Run]) -> None:
    assert check(run("fp32"), nn.Identity()) is False


@pytest.mark.xpu_hardware
def test_a_model_that_is_broken_in_fp32_too_is_not_this_checks_business(
    xpu: torch.device, run: Callable[..., Run]
) -> None:
    assert check(run("fp16"), Amplifier(gain=INF).to(xpu)) is True


@pytest.mark.xpu_hardware
def test_a_model_that_takes_more_than_an_image_goes_unchecked_and_that_is_said(
    xpu: torch.device, run: Callable[..., Run], log: list[logging.LogRecord]
) -> None:
    class Pair(Amplifier):
        def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return self.conv(x) + text

    assert check(run("fp16"), Pair().to(xpu)) is True
    (warning,) = [r.getMessage() for r in log]
    assert "unchecked" in warning


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_check_leaves_no_trace(xpu: torch.device, run: Callable[..., Run], precision: str) -> None:
    model = detector(xpu)
    model.train()
    model.model[2].eval()  # some layers may be frozen
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)

    def surroundings() -> list[Any]:
        return [
            random.getstate(),
            str(np.random.get_state()),
            torch.get_rng_state().tolist(),
            torch.xpu.get_rng_state(xpu).tolist(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("xpu"),
            [module.training for module in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [p.grad for p in model.parameters()],
            [sorted(vars(module)) for module in model.modules()],
            [str(getattr(model.model[-1], name)) for name in ("anchors", "strides", "shape", "stride")],
        ]

    state, before = deepcopy(model.state_dict()), surroundings()
    check(run(precision), model)
    assert surroundings() == before
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_an_untrained_rtdetr_passes_though_rounding_reorders_its_queries(xpu: torch.device) -> None:
    from ultralytics.nn.tasks import RTDETRDetectionModel

    torch.manual_seed(0)
    model = RTDETRDetectionModel("rtdetr-l.yaml", nc=3, verbose=False).to(xpu)
    run = Run(devices.info(0), (0,), Precision("bf16", "this test says so"), options())
    assert check(run, model)
    assert run.precision.name == "bf16"
