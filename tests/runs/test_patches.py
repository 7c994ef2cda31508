"""What a run changes in Ultralytics it puts back, whatever happens; where nothing is needed, nothing is changed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics.engine.trainer
from ultralytics.utils import torch_utils

import xpu_simulator
from yolo_xpu_trainer import hookimpl
from yolo_xpu_trainer.patches import Patch

from .. import training
from ..conftest import Train, TrainingData
from ..other_plugins import registered
from ..unit.test_patches import MOVED, FaultError, changed, changing, snapshot

pytestmark = pytest.mark.usefixtures("everything_is_imported")


@pytest.fixture(scope="module")
def everything_is_imported(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let Ultralytics import what it imports on first use."""
    with xpu_simulator.use_profile("arc-b580"):
        training.train(data("detect"), project=str(tmp_path_factory.mktemp("first")))


EVENTS = ("on_train_start", "on_train_batch_end", "on_val_start", "on_model_save", "on_fit_epoch_end", "on_train_end")


# A run


@pytest.mark.parametrize("amp", ["bf16", "fp16", "fp32"])
def test_after_a_run_every_name_stands_for_what_it_stood_for(train: Train, amp: str) -> None:
    before = snapshot()
    during: set[tuple[str, str]] = set()
    train(callbacks={event: lambda _: during.update(changed(before, snapshot())) for event in EVENTS}, amp=amp)
    assert ("ultralytics.engine.trainer", "check_amp") in during
    if amp == "bf16":
        assert ("ultralytics.engine.trainer", "autocast") in during
        assert ("ultralytics.utils.loss:v8DetectionLoss", "__call__") in during
    assert changed(before, snapshot()) == set()


@pytest.mark.xpu_profile("core-ultra-155h")
def test_what_autobatch_is_shown_is_put_back(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils import torch_utils

    before = snapshot()
    during: set[tuple[str, str]] = set()
    time_sync = torch_utils.time_sync

    def look(*args: Any) -> float:
        during.update(changed(before, snapshot()))
        return float(time_sync(*args))

    with monkeypatch.context() as patched:
        patched.setattr(torch_utils, "time_sync", look)
        train(batch=-1)
    assert {("ultralytics.utils.autobatch", name) for name in ("get_torch_device_backend", "profile_ops")} <= during
    assert changed(before, snapshot()) == set()


def test_a_run_on_the_cpu_changes_nothing(train: Train) -> None:
    before = snapshot()
    during: set[tuple[str, str]] = set()
    train(callbacks={event: lambda _: during.update(changed(before, snapshot())) for event in EVENTS}, device="cpu")
    assert during == set()


def test_an_fp32_run_keeps_upstreams_own_code_but_for_the_amp_check_syncs_and_faults(train: Train) -> None:
    before = snapshot()
    during: set[tuple[str, str]] = set()
    train(callbacks={event: lambda _: during.update(changed(before, snapshot())) for event in EVENTS}, amp=False)
    names = {name for _, name in during}
    policies = {"check_amp", "torch", "make_anchors", "preprocess", "forward", "autobatch", "tloss", "loss"}
    policies |= {"pair_overlaps", "calculate_rle_loss"}
    times = {"get_box_metrics"}
    faults = {"autocast", "backward", "optimizer_step", "_build_train_pipeline", "__call__", "save", "save_metrics"}
    assert names <= {
        *policies,
        *faults,
        *times,
        "subprocess",
        "preprocess_batch",
        "build_optimizer",
        "enumerate",
        "_clear_memory",
    }


def fail(trainer: Any) -> None:
    raise FaultError


@pytest.mark.parametrize(
    "event",
    [
        "on_pretrain_routine_start",
        "on_pretrain_routine_end",
        "on_train_batch_end",
        "on_val_start",
        "on_val_end",
        "on_model_save",
        "on_fit_epoch_end",
        "on_train_end",
        "teardown",
    ],
)
def test_after_a_run_that_failed_every_name_stands_for_what_it_stood_for(train: Train, event: str) -> None:
    before = snapshot()
    with pytest.raises(FaultError):
        train(callbacks={event: fail})
    assert changed(before, snapshot()) == set()


def test_a_failing_save_leaves_no_change_behind(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise FaultError

    monkeypatch.setattr(torch, "save", full)
    before = snapshot()
    with pytest.raises(FaultError):
        train()
    assert changed(before, snapshot()) == set()
    assert torch.save is full


def test_a_failing_final_validation_leaves_no_change_behind(train: Train) -> None:
    def fail_at_the_end(trainer: Any) -> None:
        if not trainer.validator.training:  # which it is after each epoch
            raise FaultError

    before = snapshot()
    with pytest.raises(FaultError):
        train(callbacks={"on_fit_epoch_end": fail_at_the_end})
    assert changed(before, snapshot()) == set()


def test_a_module_first_imported_during_a_run_keeps_nothing_of_it(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = types.ModuleType("ultralytics.late")

    def import_it(trainer: Any) -> None:
        exec("from ultralytics.utils.torch_utils import autocast", vars(late))
        monkeypatch.setitem(sys.modules, "ultralytics.late", late)

    original = torch_utils.autocast
    train(callbacks={"on_train_start": import_it}, amp="bf16")
    assert late.autocast is original


def test_a_first_run_in_a_process_leaves_nothing_of_ours_in_ultralytics(
    xpu: torch.device, data: TrainingData, tmp_path: Path
) -> None:
    code = f"""
import sys
import torch
from ultralytics import YOLO
from yolo_xpu_trainer import XPUDetectionTrainer
from yolo_xpu_trainer.activation import process_patches

given = dict(data={data("detect")!r}, epochs=1, imgsz=32, plots=False, project={str(tmp_path)!r}, amp="bf16")
YOLO("yolo11n.yaml").train(trainer=XPUDetectionTrainer, **given)
process_patches().restore()
for name, module in list(sys.modules.items()):
    for key, value in list(vars(module).items()) if name.partition(".")[0] == "ultralytics" else []:
        home = getattr(value, "__globals__", {{}}).get("__name__", str(getattr(value, "__module__", "")))
        assert not home.startswith("yolo_xpu_trainer"), (name, key, value)
print("clean")
"""
    environment = {**os.environ, **({"XPU_SIMULATOR": "arc-b580"} if xpu_simulator.is_active() else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip().endswith("clean"), done.stderr


def test_two_runs_in_a_row_each_get_what_they_need(train: Train) -> None:
    dtypes = []

    def look(trainer: Any) -> None:
        with ultralytics.engine.trainer.autocast(True, device="xpu"):
            dtypes.append(torch.get_autocast_dtype("xpu"))

    for amp in ("bf16", "fp16", "bf16"):
        train(callbacks={"on_train_start": look}, amp=amp, val=False)
    assert dtypes == [torch.bfloat16, torch.float16, torch.bfloat16]


class Plugin:
    """Wants changes that this Ultralytics has no place for, and one that it has."""

    def __init__(self, patches: list[Patch]) -> None:
        self.patches = patches

    @hookimpl
    def xpu_patches(self) -> list[Patch]:
        return self.patches


def test_a_run_goes_on_where_seams_moved(train: Train, log: list[logging.LogRecord]) -> None:
    there = changing(
        "ultralytics.utils.torch_utils:one_cycle", replacement=lambda run, original: lambda *a: original(*a)
    )
    acted = []

    def look(trainer: Any) -> None:
        acted.append(torch_utils.one_cycle is not original)

    original = torch_utils.one_cycle
    with registered(Plugin([*map(changing, MOVED), there])):
        trainer = train(callbacks={"on_train_start": look})
        train(callbacks={"on_train_start": look})
    assert trainer.last.exists()
    assert acted == [True, True]
    assert torch_utils.one_cycle is original
    warned = [r.getMessage() for r in log if "was not found in Ultralytics" in r.getMessage()]
    assert len(warned) == len(MOVED)


def test_no_seam_of_ours_has_moved_in_the_version_installed(train: Train, log: list[logging.LogRecord]) -> None:
    train()
    assert not [r.getMessage() for r in log if "was not found in Ultralytics" in r.getMessage()]
