"""Memory figures and clearing, where the driver can tell its free memory and where it can't."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils.autobatch import check_train_batch_size

import xpu_simulator
from yolo_xpu_trainer import XPUDetectionTrainer, devices, plugins
from yolo_xpu_trainer.commands.measurement import isolation
from yolo_xpu_trainer.patches import applied
from yolo_xpu_trainer.policies.autobatch import autobatch
from yolo_xpu_trainer.run import Precision, Run

from ..conftest import Train, TrainingData
from ..options import options

laptop = pytest.mark.xpu_profile("core-ultra-155h")


@pytest.fixture
def trainer(xpu: torch.device, data: TrainingData, tmp_path: Path) -> Any:
    return XPUDetectionTrainer(overrides={"model": "yolo11n.yaml", "data": data("detect"), "project": str(tmp_path)})


@laptop
@pytest.mark.needs("torch.xpu.mem_get_info")
def test_this_laptop_can_not_tell_its_free_memory(xpu: torch.device) -> None:
    with pytest.raises(RuntimeError, match="doesn't support querying the available free memory"):
        torch.xpu.mem_get_info(0)
    assert devices.info(0).free_memory() is None


# The progress line


@pytest.mark.xpu_hardware
@pytest.mark.parametrize(
    "profile", [pytest.param(name, marks=pytest.mark.xpu_profile(name)) for name in ("core-ultra-155h", "arc-b580")]
)
def test_the_progress_line_shows_the_memory_in_use(
    train: Train, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[float] = []
    train(callbacks={"on_train_batch_end": lambda trainer: seen.append(trainer._get_memory())}, batch=2, val=False)
    assert len(seen) == 4
    assert all(figure > 0 for figure in seen)
    shown = {float(text) for text in re.findall(r"1/1\s+([0-9.]+)G", capsys.readouterr().out)}
    assert shown
    assert max(shown) == pytest.approx(max(seen), rel=0.01)


@pytest.mark.xpu_hardware
def test_memory_is_what_pytorch_holds_on_the_runs_own_device(trainer: Any, xpu: torch.device) -> None:
    held = torch.empty(256 << 20, dtype=torch.uint8, device=xpu)
    reserved, total = torch.xpu.memory_reserved(xpu), torch.xpu.get_device_properties(xpu).total_memory
    assert held.nbytes <= reserved
    assert trainer._get_memory() == pytest.approx(reserved / 2**30)
    assert trainer._get_memory(fraction=True) == pytest.approx(reserved / total)
    assert plugins.manager().hook.xpu_memory(device=trainer.xpu.device) == (reserved, total)


@pytest.mark.xpu_profile("max-1550")
def test_memory_of_another_device_does_not_count(data: TrainingData, xpu: torch.device, tmp_path: Path) -> None:
    given = {"model": "yolo11n.yaml", "data": data("detect"), "project": str(tmp_path), "device": "xpu:1"}
    trainer = XPUDetectionTrainer(overrides=given)
    before = trainer._get_memory()
    elsewhere = torch.empty(256 << 20, dtype=torch.uint8, device="xpu:0")
    assert trainer._get_memory() == before
    assert elsewhere.nbytes


# Clearing


@pytest.fixture
def clearings(monkeypatch: pytest.MonkeyPatch, xpu: torch.device) -> list[str]:
    """Note what is going on whenever PyTorch's cache is emptied; the last entry says what is."""
    noted = ["start"]
    empty = torch.xpu.empty_cache

    def empty_cache() -> None:
        noted.insert(-1, f"cleared in {noted[-1]}")
        empty()

    monkeypatch.setattr(torch.xpu, "empty_cache", empty_cache)
    return noted


@pytest.mark.xpu_hardware
@laptop
def test_the_cache_is_not_emptied_step_by_step(train: Train, clearings: list[str]) -> None:
    def enter(phase: str) -> Callable[[Any], None]:
        return lambda trainer: clearings.__setitem__(-1, phase)

    events = {"on_train_epoch_start": enter("an epoch"), "on_train_epoch_end": enter("between epochs")}
    train(callbacks=events, epochs=2, batch=2)
    clearings.pop()
    assert "cleared in an epoch" not in clearings
    assert len(clearings) <= 2  # at the end of the run, and after AutoBatch


def test_the_cache_is_emptied_where_it_has_grown_large(trainer: Any, clearings: list[str]) -> None:
    trainer._clear_memory()
    clearings.clear()
    clearings.append("start")
    of_others = trainer._get_memory()
    held = torch.empty(int(trainer.xpu.device.total_memory * 0.3), dtype=torch.uint8, device=trainer.device)
    trainer._clear_memory(0.5)
    assert clearings == ["start"]
    more = torch.empty_like(held)
    trainer._clear_memory(0.5)
    assert clearings == ["cleared in start", "start"]
    del held, more
    trainer._clear_memory()
    assert clearings == ["cleared in start"] * 2 + ["start"]
    assert trainer._get_memory() == of_others


@pytest.mark.parametrize("of", ["a trainer", "a benchmark"])
def test_pending_work_is_done_before_the_cache_is_emptied(
    trainer: Any, clearings: list[str], monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    # pytorch#197520: what was pending came out as NaN
    synchronize = torch.xpu.synchronize

    def wait(device: Any = None) -> None:
        synchronize(device)
        clearings.insert(-1, f"waited for {torch.device('xpu', device)}")

    monkeypatch.setattr(torch.xpu, "synchronize", wait)
    trainer._clear_memory() if of == "a trainer" else isolation.clear(0)
    assert clearings == ["waited for xpu:0", "cleared in start", "start"]


@laptop
def test_clearing_needs_no_figure_of_free_memory(trainer: Any, clearings: list[str]) -> None:
    trainer._clear_memory(0.5)
    trainer._clear_memory()
    assert clearings == ["cleared in start", "start"]


# AutoBatch


@pytest.mark.xpu_hardware
@pytest.mark.parametrize(
    "profile", [pytest.param(name, marks=pytest.mark.xpu_profile(name)) for name in ("core-ultra-155h", "arc-b580")]
)
def test_autobatch_finds_a_batch_size(train: Train, profile: str) -> None:
    trainer = train(batch=-1, val=False)
    assert trainer.device.type == "xpu"
    assert 1 <= trainer.args.batch <= 8  # as many as there are images
    assert trainer.last.exists()


@laptop
@pytest.mark.needs("torch.xpu.mem_get_info")
def test_upstreams_autobatch_fails_here_without_its_patches(xpu: torch.device) -> None:
    # Once it doesn't, the patch of `get_torch_device_backend` can go on such a machine.
    run = Run(devices.info(0), (0,), Precision("fp32", "a test says so"), options())
    model = YOLO("yolo11n.yaml").model.to(xpu)
    with pytest.raises(RuntimeError, match="free memory"):
        check_train_batch_size(model, imgsz=32, amp=False, dataset_size=2)
    with applied([autobatch], run):
        assert check_train_batch_size(model, imgsz=32, amp=False, dataset_size=2) in (1, 2)


def test_a_driver_that_stops_answering_in_the_middle_of_a_process_is_noticed(train: Train) -> None:
    xpu_simulator.faults.mem_get_info()
    assert train(batch=-1, val=False).last.exists()
