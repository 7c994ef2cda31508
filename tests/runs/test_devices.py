"""A run stays on the device it was given."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from ultralytics import YOLO

import xpu_simulator

from ..conftest import Train

no_xpu = pytest.mark.xpu_profile("none")

two_xpus = pytest.mark.xpu_profile("max-1550")


def warnings_in(records: list[logging.LogRecord]) -> list[str]:
    return [r.getMessage() for r in records if r.levelno >= logging.WARNING and "XPU" in r.getMessage()]


def test_a_run_on_the_cpu_touches_no_xpu(train: Train, log: list[logging.LogRecord]) -> None:
    with xpu_simulator.count() as done:
        train(device="cpu", xpu_pin_memory=False)
    assert done.launches == done.allocations == 0
    assert warnings_in(log) == []


@two_xpus
@pytest.mark.parametrize("how", ["device=", ".to()"])
def test_a_whole_run_stays_on_the_second_xpu(train: Train, how: str) -> None:
    seen = set()

    def look(trainer: Any) -> None:
        seen.update(p.device for p in [*trainer.model.parameters(), *trainer.ema.ema.parameters(), trainer.loss])

    model = YOLO("yolo11n.yaml")
    asked = {"device": "xpu:1"} if how == "device=" else {}
    if not asked:
        model.to("xpu:1")
    model.add_callback("on_train_batch_end", look)
    torch.xpu.reset_peak_memory_stats(0)
    train(model=model, **asked)
    assert seen == {torch.device("xpu", 1)}
    assert torch.xpu.max_memory_allocated(0) == torch.xpu.memory_allocated(0)


@no_xpu
@pytest.mark.parametrize("asked", [None, ""], ids=repr)
def test_with_no_xpu_and_nothing_asked_one_warning_says_why_and_the_cpu_trains(
    train: Train, log: list[logging.LogRecord], asked: object
) -> None:
    trainer = train(device=asked)
    assert trainer.device == torch.device("cpu")
    assert trainer.xpu is None
    assert trainer.last.exists()
    (warning,) = warnings_in(log)
    assert "XPUDetectionTrainer" in warning
    assert "the driver shows no XPU" in warning
    assert "yolo-xpu doctor" in warning


def test_models_are_profiled_without_tensorrt(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils.benchmarks import ProfileModels

    formats: list[str] = []

    def export(self: YOLO, format: str, device: torch.device, **arguments: Any) -> str:
        assert device == xpu
        formats.append(format)
        return f"model.{format}"

    monkeypatch.setattr(YOLO, "export", export)
    monkeypatch.setattr(ProfileModels, "profile_onnx_model", lambda self, file: (1.0, 0.0))
    (found,) = ProfileModels(["yolo11n.yaml"], imgsz=32).run()
    assert formats == ["onnx"]
    assert found["model/speed_ONNX(ms)"] == 1.0
    assert found["model/speed_TensorRT(ms)"] == 0.0
