"""A training takes what autotune chose, says so, and heeds what the user says."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.utils import DEFAULT_CFG_DICT

from yolo_xpu_trainer import XPUDetectionTrainer, devices
from yolo_xpu_trainer.options import Option
from yolo_xpu_trainer.plugins import declared_options
from yolo_xpu_trainer.policies import tuned
from yolo_xpu_trainer.policies.tuned import choices

from ..conftest import Train, TrainingData

CHOICE = choices.Choice(
    options={"channels_last": False, "prefetch": 2},
    arguments={"deterministic": False},
    gain=0.12,
    measured="yolo11n, imgsz 640, batch 16",
    date="2026-11-26",
)
pytestmark = pytest.mark.usefixtures("channels_last_by_default")


@pytest.fixture(autouse=True)
def remembered(xpu: torch.device) -> Iterator[None]:
    """Let a choice be remembered for YOLO11 on this device."""
    choices.path().unlink(missing_ok=True)
    remember(CHOICE)
    yield
    choices.path().unlink(missing_ok=True)


def remember(choice: choices.Choice) -> None:
    choices.keep(choices.place(devices.info(0), "yolo11 detect"), choice)


def change(**what: Any) -> None:
    """Change what is remembered, as if it was measured with something else."""
    content = json.loads(choices.path().read_text())
    content["choices"][0].update(what)
    choices.path().write_text(json.dumps(content))


@pytest.fixture
def made(data: TrainingData, tmp_path: Path) -> Any:
    """Return a function that makes a trainer, which decides about its run, and doesn't train."""

    def make(**arguments: Any) -> Any:
        overrides = {"model": "yolo11n.yaml", "data": data("detect"), "project": str(tmp_path), "imgsz": 64}
        return XPUDetectionTrainer(overrides={**overrides, **arguments})

    return make


def value(trainer: Any, name: str) -> Any:
    option: Option[Any] = next(option for option in declared_options() if option.name == name)
    return trainer.xpu.options.on(trainer.xpu.device, option)


def lines(log: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in log if "autotune" in record.getMessage()]


def test_a_training_takes_the_choice_and_says_so(train: Train, log: list[logging.LogRecord]) -> None:
    seen: list[tuple[bool, bool]] = []

    def look(trainer: Any) -> None:
        weight = next(weight for weight in trainer.model.parameters() if weight.dim() == 4 and weight.shape[1] > 1)
        seen.append((weight.is_contiguous(), torch.are_deterministic_algorithms_enabled()))

    trainer = train(imgsz=64, callbacks={"on_train_start": look})
    assert seen == [(True, False)]
    assert lines(log) == [
        "XPU: taking xpu_channels_last=False, xpu_prefetch=2, deterministic=False, as chosen by `yolo-xpu autotune` on "
        "2026-11-26 (+12% with yolo11n, imgsz 640, batch 16); xpu_tuned=False takes the defaults."
    ]
    saved = torch.load(trainer.last, weights_only=False)["xpu_trainer"]
    assert saved["options"]["channels_last"] is True  # what was measured isn't what was given


def test_a_resumed_run_keeps_what_it_had(train: Train, log: list[logging.LogRecord]) -> None:
    def stop(trainer: Any) -> None:
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(imgsz=64, epochs=2, callbacks={"on_model_save": stop})
    (last,) = Path.cwd().rglob("last.pt")
    choices.path().unlink()
    log.clear()
    model = YOLO(last)
    model.train(resume=True)
    assert (value(model.trainer, "channels_last"), model.trainer.args.deterministic) == (False, False)
    assert not lines(log)


def test_explicit_arguments_win(made: Any, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_XPU_PREFETCH", "1")
    trainer = made(xpu_channels_last=True, deterministic=True)
    assert (value(trainer, "channels_last"), value(trainer, "prefetch"), trainer.args.deterministic) == (True, 1, True)
    assert not lines(log)


def test_ultralytics_own_channels_last_wins(made: Any) -> None:
    if "channels_last" not in vars(made().args):
        pytest.skip("this Ultralytics has no such argument")
    trainer = made(channels_last=True)
    assert (value(trainer, "channels_last"), value(trainer, "prefetch")) == (True, 2)


def test_tuned_off_takes_the_defaults(made: Any, log: list[logging.LogRecord]) -> None:
    trainer = made(xpu_tuned=False)
    assert (value(trainer, "channels_last"), value(trainer, "prefetch"), trainer.args.deterministic) == (True, 1, True)
    assert not lines(log)


@pytest.mark.parametrize(
    ("what", "words"),
    [("torch", "PyTorch 2.5.0 (now"), ("driver", "driver 2.5.0 (now"), ("ultralytics", "Ultralytics")],
)
def test_another_version_makes_it_stale(made: Any, log: list[logging.LogRecord], what: str, words: str) -> None:
    change(**{what: "2.5.0"})
    trainer = made()
    assert (value(trainer, "channels_last"), trainer.args.deterministic) == (True, True)
    (line,) = lines(log)
    assert "for yolo11 detect is not taken, because it was measured with" in line
    assert words in line


def test_a_newer_choice_beside_a_stale_one_is_taken(made: Any, log: list[logging.LogRecord]) -> None:
    change(torch="2.5.0")
    remember(choices.Choice(options={"prefetch": 0}))
    assert value(made(), "prefetch") == 0
    assert "taking xpu_prefetch=0" in lines(log)[0]


def test_another_model_or_device_takes_nothing(made: Any, log: list[logging.LogRecord]) -> None:
    assert value(made(model="yolov8n.yaml"), "channels_last") is True
    change(device="another")
    assert value(made(), "channels_last") is True
    assert not lines(log)


@pytest.mark.xpu_profile("max-1550")
@pytest.mark.needs("torch.distributed.is_xccl_available")
def test_several_gpus_take_nothing(made: Any, log: list[logging.LogRecord]) -> None:
    assert value(made(device="xpu:0,1"), "channels_last") is True
    assert not lines(log)


def test_the_faster_precision_is_taken_unless_one_is_named(made: Any) -> None:
    remember(choices.Choice(precision="fp16"))
    assert made().xpu.precision.name == "fp16"
    assert made(amp=True).xpu.precision.name == "fp16"
    assert made(amp="bf16").xpu.precision.name == "bf16"
    assert made(amp=False).xpu.precision.name == "fp32"


def test_a_precision_that_is_wrong_here_is_not_taken(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(choices.Choice(precision="fp16"))

    def examine(checks: Any, device: Any) -> Any:
        assert {check.dtype for check in checks} == {torch.float16}
        return [SimpleNamespace(right=False)]

    monkeypatch.setattr(tuned, "examine", examine)
    assert made().xpu.precision.name == "bf16"


def test_a_users_configuration_wins(made: Any, tmp_path: Path, data: TrainingData) -> None:
    remember(choices.Choice(arguments={"workers": 2}))
    file = tmp_path / "mine.yaml"
    mine = {"workers": 5, "model": "yolo11n.yaml", "data": data("detect"), "project": str(tmp_path), "imgsz": 64}
    file.write_text(yaml.safe_dump({**DEFAULT_CFG_DICT, **mine}))
    assert made().args.workers == 2
    assert XPUDetectionTrainer(cfg=str(file)).args.workers == 5


def test_a_number_of_workers_that_is_none_is_left_out(made: Any) -> None:
    remember(choices.Choice(arguments={"workers": -3}))
    assert made().args.workers >= 0


def test_an_exact_run_stays_deterministic(made: Any) -> None:
    trainer = made(xpu_exact_resume=True)
    assert (trainer.args.deterministic, value(trainer, "channels_last")) == (True, False)


@pytest.mark.parametrize(
    "choice",
    [
        {"options": {"channels_last": "perhaps", "no_such_option": 1, "strict": True}},
        {"options": [1]},
        {"options": {}, "arguments": {"epochs": 1, "deterministic": "no"}},
    ],
)
def test_what_makes_no_sense_is_left_out(made: Any, choice: dict[str, Any], log: list[logging.LogRecord]) -> None:
    change(**choice)
    trainer = made()
    assert (value(trainer, "channels_last"), value(trainer, "strict")) == (True, False)
    assert trainer.args.epochs == 100
    assert type(trainer.args.deterministic) is bool


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"choices": 1}', '{"choices": [1, {}]}', "[" * 200_000],
    ids=["empty", "a brace", "a list", "a number", "numbers", "deep"],
)
def test_a_broken_file_is_no_choice(made: Any, content: str) -> None:
    choices.path().write_text(content)
    assert value(made(), "channels_last") is True
    remember(CHOICE)
    assert value(made(), "channels_last") is False


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("yolo11n.yaml", "yolo11 detect"),
        ("yolo11x.pt", "yolo11 detect"),
        ("some/where/yolov8s-seg.pt", "yolov8-seg detect"),
        ("yolov8m-p6.yaml", "yolov8-p6 detect"),
        ("rtdetr-l.yaml", "rtdetr-l detect"),
        ("mine.yaml", "mine detect"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_family_is_the_architecture_without_its_size(model: object, family: str) -> None:
    assert choices.family(model, "detect") == family


def test_a_checkpoint_of_a_users_says_what_it_was_made_from(tmp_path: Path) -> None:
    model = YOLO("yolo11n.yaml").model
    for name, content in (("best", {"model": model, "ema": None}), ("last", {"model": None, "ema": model})):
        torch.save(content, tmp_path / f"{name}.pt")
        assert choices.family(tmp_path / f"{name}.pt", "detect") == "yolo11 detect"
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    assert choices.family(tmp_path / "broken.pt", "detect") == "broken detect"
