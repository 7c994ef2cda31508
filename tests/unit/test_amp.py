"""The loss scaler that needs no float64, and the check that a model bears reduced precision."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

import xpu_simulator
from yolo_xpu_trainer import XPUDetectionTrainer, devices
from yolo_xpu_trainer.policies.amp_check import check
from yolo_xpu_trainer.policies.grad_scaler import GradScaler
from yolo_xpu_trainer.run import Precision, Run

from ..conftest import TrainingData
from ..options import options

arc_a770 = pytest.mark.xpu_profile("arc-a770")

INF, NAN = float("inf"), float("nan")
Make = Callable[..., torch.amp.GradScaler]


# The scaler


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


@arc_a770
def test_an_fp16_run_trains_where_there_is_no_float64(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    model = YOLO("yolo11n.yaml")
    given = {"data": data("detect"), "epochs": 3, "imgsz": 64, "batch": 2, "nbs": 2, "val": False}
    with xpu_simulator.count() as done:
        model.train(trainer=XPUDetectionTrainer, amp="fp16", project=str(tmp_path), plots=False, **given)
    trainer = model.trainer
    assert trainer.scaler.is_enabled()
    assert trainer.ema.updates == 12
    skipped = round(math.log2(2**16 / trainer.scaler.get_scale()))  # the scale halves with each
    assert skipped < 12
    assert {float(state["step"]) for state in trainer.optimizer.state.values()} == {12.0 - skipped}
    assert done.float64_kernels == {}


# The check


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


# In a run


class StopHere(Exception):  # noqa: N818 - nothing is wrong
    """Ends a run once what matters was seen."""


class Loud(XPUDetectionTrainer):
    """Trains a model whose outputs float16 can't hold."""

    def get_model(self, *args: Any, **kwargs: Any) -> Any:
        model = super().get_model(*args, **kwargs)
        with torch.no_grad():
            for branch in model.model[-1].cv2:
                branch[-1].bias.fill_(3e5)
        return model


def begun(trainer: Any) -> dict[str, Any]:
    """Run a trainer up to its first batch; return what it computed in."""
    seen: dict[str, Any] = {}

    def look(trainer: Any) -> None:
        seen.update(
            precision=trainer.xpu.precision,
            amp=trainer.amp,
            scaling=trainer.scaler.is_enabled(),
        )
        raise StopHere

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen.setdefault("dtype", output.dtype)

    def watch(trainer: Any) -> None:
        next(m for m in trainer.model.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(note)

    trainer.add_callback("on_train_start", watch)
    trainer.add_callback("on_train_batch_end", look)
    with pytest.raises(StopHere):
        trainer.train()
    return seen


@pytest.mark.xpu_profile("core-ultra-155h")
@pytest.mark.parametrize(
    ("trainer", "amp", "name", "dtype"),
    [
        (XPUDetectionTrainer, True, "fp16", torch.float16),
        (Loud, True, "fp32", torch.float32),
        (Loud, "fp16", "fp16", torch.float16),
        (XPUDetectionTrainer, "bf16", "bf16", torch.bfloat16),
        (XPUDetectionTrainer, False, "fp32", torch.float32),
    ],
    ids=["sound", "too loud for fp16", "too loud, but asked for", "bf16 asked for", "switched off"],
)
def test_a_run_computes_in_what_was_asked_for_or_what_its_model_bears(
    xpu: torch.device,
    data: TrainingData,
    tmp_path: Path,
    trainer: type,
    amp: bool | str,
    name: str,
    dtype: torch.dtype,
) -> None:
    given = {"model": "yolo11n.yaml", "data": data("detect"), "imgsz": 32, "plots": False, "project": str(tmp_path)}
    seen = begun(trainer(overrides={**given, "amp": amp}))
    assert seen["precision"].name == name
    assert seen["dtype"] is dtype
    assert seen["amp"] is (name != "fp32")
    assert seen["scaling"] is (name == "fp16")


def test_an_untrained_rtdetr_passes_though_rounding_reorders_its_queries(xpu: torch.device) -> None:
    from ultralytics.nn.tasks import RTDETRDetectionModel

    torch.manual_seed(0)
    model = RTDETRDetectionModel("rtdetr-l.yaml", nc=3, verbose=False).to(xpu)
    run = Run(devices.info(0), (0,), Precision("bf16", "this test says so"), options())
    assert check(run, model)
    assert run.precision.name == "bf16"
