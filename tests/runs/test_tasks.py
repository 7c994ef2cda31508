"""Every trainer trains, validates, plots and saves on an XPU, whether the device knows float64 or not."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ultralytics import YOLOE

from xpu_simulator import counters, is_active
from yolo_xpu_trainer import trainers

from ..conftest import TrainingData
from . import text_encoder
from .cases import CASES, END_TO_END, RTDETR, TINY_RTDETR, Case, open_data

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.load:FutureWarning")

_HARMLESS = (
    "no model scale passed",  # the tiny RT-DETR has no scales
    "Skipping instance count verification",  # of a data set that isn't one of Ultralytics' own
)


@pytest.fixture
def _text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clip", text_encoder)
    text_encoder.write_mobileclip(Path.cwd())


@pytest.fixture(scope="session")
def _open_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return open_data(tmp_path_factory.mktemp("open"))


@dataclass
class Seen:
    """What callbacks saw of a run.

    Attributes:
        parameters: Types of the devices that held the parameters.
        sums: The sum of all parameters before and after training.
        losses: The loss of each batch.
        validations: For each, whether it was within training, and its device's type.
    """

    parameters: set[str] = field(default_factory=set)
    sums: set[float] = field(default_factory=set)
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[bool, str]] = field(default_factory=list)


def _watch(trainer: Any) -> Seen:
    seen = Seen()

    def total(trainer: Any) -> None:
        seen.sums.add(sum(p.detach().abs().sum().item() for p in trainer.model.parameters()))

    def batch_end(trainer: Any) -> None:
        seen.parameters |= {p.device.type for p in trainer.model.parameters()}
        seen.losses.append(trainer.loss.item())

    trainer.add_callback("on_train_start", total)
    trainer.add_callback("on_train_batch_end", batch_end)
    trainer.add_callback("on_train_epoch_end", total)
    trainer.add_callback("on_val_end", lambda v: seen.validations.append((v.training, v.device.type)))
    return seen


def _check(name: str, case: Case, data: Any, log: list[logging.LogRecord], directory: Path) -> None:
    """Train for an epoch and look at what came out."""
    model = case.model
    if case.pretrained:
        model = f"{case.task}.pt"
        YOLOE(case.model).save(model)
    trainer = getattr(trainers, name)(
        overrides={
            "model": model,
            "task": case.task,
            "data": data,
            "device": "xpu",
            "epochs": 1,
            "imgsz": 64,
            "batch": 4,
            "nbs": 4,  # a step of the optimizer each batch, at its full rate
            "warmup_epochs": 0,
            "workers": 0,
            "project": str(directory),
            "name": "run",
        }
    )
    seen = _watch(trainer)
    trainer.train()

    assert seen.parameters == {"xpu"}
    assert len(seen.sums) == 2
    assert seen.validations == [(True, "xpu"), (False, "xpu")]
    assert seen.losses
    assert all(map(math.isfinite, seen.losses))
    assert trainer.metrics
    assert all(math.isfinite(v) for v in trainer.metrics.values())
    assert trainer.best.stat().st_size
    assert trainer.last.stat().st_size
    assert {"results.png", "train_batch0.jpg", "val_batch0_pred.jpg"} <= {f.name for f in trainer.save_dir.iterdir()}
    warned = [r.getMessage() for r in log if r.levelno >= logging.WARNING]
    assert not [message for message in warned if not any(text in message for text in _HARMLESS)]
    if is_active() and not trainer.xpu.device.has_fp64:
        assert not counters.read().float64_kernels


def _data(case: Case, data: TrainingData, request: pytest.FixtureRequest) -> Any:
    if case.text:
        request.getfixturevalue("_text_encoder")
    if case.model == RTDETR:
        Path(RTDETR).write_text(TINY_RTDETR)
    return request.getfixturevalue("_open_data") if case.data == "open" else data(case.data)


def test_every_trainer_of_this_ultralytics_is_tried_here() -> None:
    assert set(CASES) == set(trainers.TRAINERS)


@pytest.mark.xpu_hardware
@pytest.mark.usefixtures("xpu", "empty_figures")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "profile", [pytest.param(p, marks=pytest.mark.xpu_profile(p)) for p in ("arc-b580", "arc-a770")]
)
def test_a_task_trains_validates_and_saves(
    name: str,
    profile: str,
    data: TrainingData,
    log: list[logging.LogRecord],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    _check(name, CASES[name], _data(CASES[name], data, request), log, tmp_path)


@pytest.mark.xpu_hardware
@pytest.mark.xpu_profile("arc-a770")
@pytest.mark.usefixtures("xpu", "empty_figures")
@pytest.mark.parametrize("name", END_TO_END)
def test_a_head_without_nms_trains_validates_and_saves(
    name: str, data: TrainingData, log: list[logging.LogRecord], tmp_path: Path
) -> None:
    _check(name, END_TO_END[name], data(END_TO_END[name].data), log, tmp_path)


@pytest.mark.xpu_hardware
@pytest.mark.usefixtures("xpu")
def test_plots_are_drawn(data: TrainingData, log: list[logging.LogRecord], tmp_path: Path) -> None:
    _check("XPUDetectionTrainer", CASES["XPUDetectionTrainer"], data("detect"), log, tmp_path)
    sizes = {f.name: f.stat().st_size for f in (tmp_path / "run").glob("*.png")}
    assert {"results.png", "confusion_matrix.png", "BoxPR_curve.png"} <= set(sizes)
    assert min(sizes.values()) > 1000
