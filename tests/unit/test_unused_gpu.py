"""What a run says that has no XPU support where an Intel GPU is: the real `select_device`, on faked machines."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import torch_utils

from yolo_xpu_trainer import XPUDetectionTrainer, unused_gpu

from ..conftest import TrainingData
from ..machines import Setup

pytestmark = pytest.mark.usefixtures("wrong_build")


@pytest.fixture
def wrong_build(xpu: torch.device) -> Iterator[None]:
    """Let PyTorch be one that was built without XPU support, and nothing be said yet."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.xpu, "_is_compiled", lambda: False)
        patched.setattr(torch.xpu, "device_count", lambda: 0)
        unused_gpu._said.clear()
        yield
        unused_gpu._said.set()


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    made = Setup(tmp_path / "machine")
    monkeypatch.setattr(unused_gpu, "Machine", made.machine)
    return made


def said(log: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in log if "isn't used" in record.getMessage()]


@pytest.mark.parametrize("asked", [None, ""])
def test_it_is_said_once_with_the_commands(setup: Setup, log: list[logging.LogRecord], asked: Any) -> None:
    for _ in range(3):
        assert torch_utils.select_device(asked) == torch.device("cpu")
    (line,) = said(log)
    assert "XPU: Arc B (Battlemage) [8086:e20b] isn't used, because this PyTorch" in line
    assert torch.__version__ in line
    assert "\n" not in line
    before, _, after = line.partition("pip uninstall -y torch")
    assert "pip install" not in before
    assert "pip install torch torchvision --index-url https://" in after


@pytest.mark.parametrize("asked", ["cpu", torch.device("cpu")])
def test_who_asks_for_another_device_hears_nothing(setup: Setup, log: list[logging.LogRecord], asked: Any) -> None:
    torch_utils.select_device(asked)
    assert said(log) == []


def test_who_has_a_cuda_device_hears_nothing(
    setup: Setup, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    unused_gpu.tell()
    assert said(log) == []


@pytest.mark.parametrize("device", ["a7a0", "9a49", "5917", "fd80"])
def test_a_gpu_that_pytorch_does_not_list_is_not_spoken_of(
    setup: Setup, log: list[logging.LogRecord], device: str
) -> None:
    setup.gpu(device, "i915")
    torch_utils.select_device("")
    assert said(log) == []


def test_on_windows_the_registry_is_asked(setup: Setup, log: list[logging.LogRecord]) -> None:
    setup.on_windows()
    setup.adapters = [r"pci\ven_8086&dev_7d55&subsys_00341414", r"PCI\VEN_10DE&DEV_2684", r"PCI\VEN_8086&DEV_56A0"]
    torch_utils.select_device("")
    (line,) = said(log)
    assert "XPU: Arc A (Alchemist) [8086:56a0] isn't used, because this PyTorch" in line  # the card comes first
    assert "pip uninstall -y torch" in line


@pytest.mark.parametrize(
    "adapters", [[], [r"PCI\CC_0300"], [r"PCI\VEN_8086&DEV_A780"], [r"PCI\VEN_10DE&DEV_2684", r"USB\VID_17E9&PID_4307"]]
)
def test_windows_without_a_gpu_that_qualifies_is_not_spoken_of(
    setup: Setup, log: list[logging.LogRecord], adapters: list[str]
) -> None:
    setup.on_windows()
    setup.adapters = adapters
    torch_utils.select_device("")
    assert said(log) == []


@pytest.mark.parametrize("driver", ["iigd_dch.inf_amd64_d8bdffa26077ee9a", "iigd_dch_d.inf_amd64_59943e79877d96f1"])
@pytest.mark.parametrize("has_dri", [False, True])
def test_in_wsl_the_drivers_that_windows_hands_over_are_looked_at(
    setup: Setup, log: list[logging.LogRecord], driver: str, has_dri: bool
) -> None:
    setup.in_wsl()
    setup.file(f"/usr/lib/wsl/drivers/{driver}/libze_intel_gpu.so.1")
    if has_dri:  # of a virtual display
        setup.file("/dev/dri/renderD128")
    torch_utils.select_device("")
    (line,) = said(log)
    assert "XPU: an Intel GPU of Windows, which qualifies if https://" in line
    assert "pip uninstall -y torch" in line


def test_a_wsl_with_another_vendors_gpu_is_not_spoken_of(setup: Setup, log: list[logging.LogRecord]) -> None:
    setup.in_wsl()
    setup.file("/usr/lib/wsl/drivers/nv_dispi.inf_amd64_0d2a33dd67a36577/libcuda.so.1")
    torch_utils.select_device("")
    assert said(log) == []


def test_neither_is_one_without_a_driver_or_a_machine_without_one(setup: Setup, log: list[logging.LogRecord]) -> None:
    setup.remove("/dev/dri/renderD128")
    torch_utils.select_device("")
    unused_gpu._said.clear()
    setup.file("/dev/dri/renderD128")
    setup.file("/sys/bus/pci/devices/0000:03:00.0/vendor", "0x10de\n")
    torch_utils.select_device("")
    assert said(log) == []


def test_a_build_with_xpu_support_is_not_spoken_of(setup: Setup, log: list[logging.LogRecord]) -> None:
    with pytest.MonkeyPatch.context() as patched:  # which is taken back before that of the fixture
        patched.setattr(torch.xpu, "_is_compiled", lambda: True)
        unused_gpu.tell()
    assert said(log) == []


def test_a_failure_in_looking_is_nobodys(
    setup: Setup, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("no working directory")

    monkeypatch.setattr(unused_gpu, "Machine", fail)
    assert torch_utils.select_device("") == torch.device("cpu")
    assert said(log) == []


def test_it_starts_no_process_and_takes_no_time(
    setup: Setup, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process is started")

    for number in range(60):  # as many devices as a laptop has
        at = f"/sys/bus/pci/devices/0000:00:{number:02x}.0"
        setup.file(f"{at}/vendor", "0x8086\n")
        setup.file(f"{at}/class", "0x060000\n")
    monkeypatch.setattr(subprocess, "Popen", refuse)
    begun = time.perf_counter()
    unused_gpu.tell()
    assert time.perf_counter() - begun < 0.25  # some 5 ms
    assert len(said(log)) == 1


def test_a_run_says_it_once(setup: Setup, log: list[logging.LogRecord], data: TrainingData, tmp_path: Path) -> None:
    overrides = {"model": "yolo11n.yaml", "data": data("detect"), "imgsz": 32, "project": str(tmp_path)}
    assert DetectionTrainer(overrides=overrides).device == torch.device("cpu")
    YOLO("yolo11n.yaml").predict(torch.zeros(1, 3, 32, 32), imgsz=32, save=False, verbose=False)
    assert len(said(log)) == 1


def test_a_run_on_the_cpu_that_was_asked_for_says_nothing_anywhere(
    setup: Setup, log: list[logging.LogRecord], data: TrainingData, tmp_path: Path
) -> None:
    model = YOLO("yolo11n.yaml")
    given = {"imgsz": 32, "device": "cpu", "project": str(tmp_path), "plots": False}
    model.train(data=data("detect"), epochs=1, workers=0, **given)
    model.val(data=data("detect"), workers=0, **given)
    model.predict(torch.zeros(1, 3, 32, 32), imgsz=32, device="cpu")
    assert said(log) == []
    assert not unused_gpu._said.is_set()


def test_a_trainer_of_ours_says_it_in_its_own_words_alone(
    setup: Setup, log: list[logging.LogRecord], data: TrainingData, tmp_path: Path
) -> None:
    XPUDetectionTrainer(overrides={"model": "yolo11n.yaml", "data": data("detect"), "project": str(tmp_path)})
    assert said(log) == []
    assert len([record for record in log if "finds no XPU" in record.getMessage()]) == 1
