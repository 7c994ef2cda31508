"""Autotune: it finds what is slow on made-up GPUs, and later trainings take what it chose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest
import torch

from xpu_simulator import faults
from yolo_xpu_trainer import devices
from yolo_xpu_trainer.commands import main
from yolo_xpu_trainer.commands.autotune.report import Report, doubts
from yolo_xpu_trainer.commands.autotune.search import Entry, Outcome
from yolo_xpu_trainer.commands.autotune.switches import find_switches, only
from yolo_xpu_trainer.commands.measurement import data as synthetic_data
from yolo_xpu_trainer.commands.measurement import isolation, timing
from yolo_xpu_trainer.commands.measurement.cases import Device, Window
from yolo_xpu_trainer.errors import UsageError
from yolo_xpu_trainer.policies.tuned import choices

from ..conftest import TrainingData

pytestmark = pytest.mark.usefixtures("channels_last_by_default")
even = pytest.mark.xpu_profile("made-up-even")
slow_channels_last = pytest.mark.xpu_profile("made-up-slow-channels-last")
no_xpu = pytest.mark.xpu_profile("none")

# A batch is an optimizer step, see `short`.
TINY = ["autotune", "--model", "tiny.yaml", "--imgsz", "64", "--batch", "8", "--steps", "1", "--repeats", "3"]
THREE = ["--only", "xpu_cast_weights,xpu_channels_last,xpu_fused_optimizer"]

# Two strides less than a YOLO11n, and no more of it than it takes.
MODEL = """
nc: 3
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
head:
  - [[2, 3], 1, Detect, [nc]]
"""


@pytest.fixture(autouse=True)
def nothing_remembered() -> Any:
    """Let nothing be remembered before a test, nor after it."""
    choices.path().unlink(missing_ok=True)
    yield
    choices.path().unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Warm up for two steps, without workers, on few images, and leave garbage where it is: that takes seconds."""
    (tmp_path / "tiny.yaml").write_text(MODEL)
    monkeypatch.setattr(timing, "WARMUP", 2)
    monkeypatch.setattr(synthetic_data, "MIN_IMAGES", 1)
    arguments = timing._arguments
    monkeypatch.setattr(timing, "_arguments", lambda *args: {**arguments(*args), "workers": 0, "nbs": 8})
    monkeypatch.setattr(isolation, "gc", SimpleNamespace(collect=int))


def remembered() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(choices.path().read_text(encoding="utf-8"))["choices"]
    return found


def chosen() -> dict[str, Any]:
    (choice,) = remembered()
    return {**choice["options"], **choice["arguments"]}


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        pytest.param({"channels_last": False}, THREE, marks=slow_channels_last, id="channels_last"),
        pytest.param(
            {"fused_optimizer": False},
            THREE,
            marks=[pytest.mark.xpu_profile("made-up-slow-fused"), pytest.mark.slow],
            id="fused",
        ),
        pytest.param(
            {"cast_weights": False, "channels_last": False},
            THREE,
            marks=[pytest.mark.xpu_profile("made-up-slow-casts"), pytest.mark.slow],
            id="casts_and_channels_last",
        ),
        pytest.param({}, ["--precision", "bf16,fp16"], marks=[even, pytest.mark.slow], id="nothing"),
    ],
)
def test_the_best_setting_of_a_made_up_gpu_is_found(
    xpu: torch.device, best: dict[str, Any], tried: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *tried]) == 0
    assert chosen() == best
    printed = capsys.readouterr().out
    assert "SIMULATED XPU: no hardware was measured" in printed
    assert ("The defaults stay" in printed) == (not best)
    directory = tmp_path / "runs" / "xpu-autotune"
    report = json.loads((directory / "autotune.json").read_text(encoding="utf-8"))
    assert report["chosen"] == {f"xpu_{name}": value for name, value in best.items()}
    for entry in report["measured"]:
        assert entry["failure"] == ""
        assert len(entry["windows"]) == 3
        first, *others = entry["seconds_per_step"]
        assert others == [pytest.approx(first)] * 2  # the clock is the cost model's
    singles = [entry["settings"] for entry in report["measured"] if entry["section"] == "one at a time"]
    assert len(singles) == (4 if tried is THREE else 10)
    picture = cv2.imread(str(directory / "autotune.png"))
    assert picture.min() < 100  # something is drawn
    assert not list(choices.path().parent.glob(".*.part"))


@slow_channels_last
def test_time_that_is_too_short_decides_nothing(xpu: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--minutes", "0.0001"]) == 1
    assert "Not enough time to decide: nothing is remembered" in capsys.readouterr().out
    assert not choices.path().exists()


@slow_channels_last
def test_an_interruption_leaves_nothing_behind(
    xpu: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = timing._Callbacks.batch_start
    windows: list[Any] = []

    def interrupted(self: timing._Callbacks, trainer: Any) -> None:
        windows.extend([trainer] if trainer not in windows else [])
        if len(windows) == 2:
            raise KeyboardInterrupt
        begin(self, trainer)

    monkeypatch.setattr(timing._Callbacks, "batch_start", interrupted)
    there = {path.name for path in choices.path().parent.iterdir()}
    assert main([*TINY, *THREE]) == 130
    assert "Interrupted: nothing is remembered" in capsys.readouterr().out
    assert {path.name for path in choices.path().parent.iterdir()} == there
    assert not list((tmp_path / "runs").iterdir())


def test_a_users_own_images_are_augmented_as_ever(
    xpu: torch.device, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def stop(self: timing._Callbacks, trainer: Any) -> None:
        seen.append(trainer.args)
        raise KeyboardInterrupt

    monkeypatch.setattr(timing._Callbacks, "batch_start", stop)
    assert main([*TINY, "--data", data("detect")]) == 130
    assert (str(seen[0].data), seen[0].mosaic, seen[0].cache) == (data("detect"), 1.0, False)


@pytest.mark.parametrize(("seconds", "simulated", "doubtful"), [(1, False, False), (2, False, True), (2, True, False)])
def test_clocks_that_disagree_are_said(seconds: float, simulated: bool, doubtful: bool) -> None:
    window = Window(images=16, seconds=seconds, steps=1, warmup_steps=8, wall_seconds=1.1)
    device = Device("xpu:0", "Intel Arc B580 Graphics", simulated=simulated)
    assert bool(doubts(Report(device, "yolo11n", "bf16", {}, Outcome(Entry(windows=[window]))))) == doubtful


@slow_channels_last
def test_a_batch_that_cannot_be_trained_on_is_an_error(
    xpu: torch.device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = timing._Callbacks.batch_start

    def order(self: timing._Callbacks, trainer: Any) -> None:
        begin(self, trainer)
        faults.out_of_memory(at_launch=1)

    monkeypatch.setattr(timing._Callbacks, "batch_start", order)
    assert main([*TINY, *THREE]) == 2
    error = capsys.readouterr().err
    assert "the defaults can't be measured: out of memory with batch 8 (the trainer continued with 4)" in error
    assert not choices.path().exists()


@no_xpu
def test_without_an_xpu_it_says_what_it_cannot_do(xpu: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["autotune"]) == 69
    assert "measures switches that act on Intel GPUs only, and there is none here" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_another_device_than_one_xpu_is_refused(xpu: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["autotune", "--device", "cpu"]) == 2
    assert "--device=cpu is not one XPU" in capsys.readouterr().err


def test_choices_are_forgotten_for_a_device(xpu: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    here = choices.place(devices.info(0), "yolo11 detect")
    choices.keep(here, choices.Choice(options={"prefetch": 2}))
    choices.keep(replace(here, device="another"), choices.Choice(options={"prefetch": 0}))
    assert main(["autotune", "--forget"]) == 0
    assert "1 choice forgotten" in capsys.readouterr().out
    assert [choice["device"] for choice in remembered()] == ["another"]


# What is tried


def tried(device: devices.DeviceInfo, **more: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for switch in find_switches(device, **more)[0]:
        found.setdefault(switch.keyword, []).append(switch.value)
    return found


def test_values_other_than_the_defaults_are_tried(xpu: torch.device) -> None:
    assert tried(devices.info(0)) == {
        "xpu_cast_weights": [False],
        "xpu_channels_last": [False],
        "xpu_pin_memory": [False],
        "xpu_non_blocking": [False],
        "xpu_fused_optimizer": [False],
        "xpu_prefetch": [0, 2],
        "deterministic": [False],
    }
    assert tried(devices.info(0), precisions=["fp16"], workers=True)["amp"] == ["fp16"]


@pytest.mark.xpu_profile("core-ultra-155h")
def test_an_integrated_gpu_has_other_defaults(xpu: torch.device) -> None:
    found = tried(devices.info(0))
    assert (found["xpu_prefetch"], found["xpu_non_blocking"]) == ([1, 2], [True])


def test_what_the_environment_says_is_not_tried(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_XPU_PREFETCH", "1")
    switches, notes = find_switches(devices.info(0))
    assert "xpu_prefetch" not in {switch.keyword for switch in switches}
    assert "xpu_prefetch isn't tried, because YOLO_XPU_PREFETCH is set." in notes
    with pytest.raises(UsageError, match=r"--only names xpu_prefetch, which is not tried here. xpu_prefetch isn't"):
        only(["xpu_prefetch"], switches, notes)
