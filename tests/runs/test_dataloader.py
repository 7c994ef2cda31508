"""Data-loading workers, forked and spawned; pinned batches, and copies that the host doesn't wait for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import xpu_simulator
from yolo_xpu_trainer import XPUDetectionTrainer
from yolo_xpu_trainer.policies import dataloader

from ..conftest import Train, TrainingData

SCRIPT = """
import json
import multiprocessing
import sys
from multiprocessing import freeze_support
from pathlib import Path

from ultralytics import YOLO
from yolo_xpu_trainer import XPUDetectionTrainer
from yolo_xpu_trainer.policies import dataloader

pinned = []


class Watching(XPUDetectionTrainer):
    def preprocess_batch(self, batch):
        pinned.append(batch["img"].is_pinned())
        return super().preprocess_batch(batch)


def main(data, method, project):
    multiprocessing.set_start_method(method)
    model = YOLO("yolo11n.yaml")
    given = {"epochs": 2, "imgsz": 32, "batch": 4, "workers": 2, "plots": False, "xpu_prefetch": 0}
    model.train(trainer=Watching, data=data, project=project, **given)
    trainer = model.trainer
    seen = {
        "workers": trainer.train_loader.num_workers,
        "device": str(trainer.device),
        "pinned": pinned,
        "last": trainer.last.exists(),
    }
    Path("seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    freeze_support()
    main(*sys.argv[1:])
"""


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_script_trains_with_workers(method: str, xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this platform has no fork")
    environment = {**os.environ, **({"XPU_SIMULATOR": "arc-b580"} if xpu_simulator.is_active() else {})}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), data("detect"), method, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["workers"] == 2
    assert seen["device"] == "xpu:0"
    assert len(seen["pinned"]) == 4
    assert all(seen["pinned"])
    assert seen["last"]


Watch = Callable[..., tuple[list[bool], "xpu_simulator.Counts"]]


@pytest.fixture
def watch(train: Train) -> Watch:
    """Return a function that trains two batches; it tells whether they were pinned, and how they were copied."""

    def run(**options: bool) -> tuple[list[bool], xpu_simulator.Counts]:
        pinned: list[bool] = []
        copies = xpu_simulator.Counts()

        class Watching(XPUDetectionTrainer):
            def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
                pinned.append(batch["img"].is_pinned())
                with xpu_simulator.count() as copied:
                    batch = super().preprocess_batch(batch)
                for kind, n in copied.h2d.items():
                    copies.h2d[kind] = copies.h2d.get(kind, 0) + n
                return batch

        train(trainer=Watching, val=False, **options)
        return pinned, copies

    return run


def kinds(copies: xpu_simulator.Counts) -> set[tuple[str, str]]:
    return {kind for kind, n in copies.h2d.items() if n}


def test_batches_are_pinned_and_copied_while_the_host_goes_on(watch: Watch) -> None:
    pinned, copies = watch()
    assert pinned == [True, True]
    assert kinds(copies) == {("pinned", "non_blocking")}
    assert copies.h2d["pinned", "non_blocking"] >= 2  # at this size, images and labels together


def test_pinning_can_be_switched_off(watch: Watch) -> None:
    pinned, copies = watch(xpu_pin_memory=False)
    assert pinned == [False, False]
    assert {memory for memory, _ in kinds(copies)} == {"pageable"}


def test_the_host_can_be_made_to_wait_for_copies(watch: Watch) -> None:
    pinned, copies = watch(xpu_non_blocking=False)
    assert pinned == [True, True]
    assert kinds(copies) == {("pinned", "blocking")}


def test_both_can_be_switched_off(watch: Watch) -> None:
    pinned, copies = watch(xpu_pin_memory=False, xpu_non_blocking=False)
    assert pinned == [False, False]
    assert kinds(copies) == {("pageable", "blocking")}


def test_validation_batches_are_pinned_as_training_batches_are(train: Train) -> None:
    loaders: dict[bool, list[bool]] = {}
    for pin in (True, False):
        trainer = train(xpu_pin_memory=pin)
        loaders[pin] = [trainer.train_loader.pin_memory, trainer.test_loader.pin_memory]
    assert loaders == {True: [True, True], False: [False, False]}


def test_a_run_on_the_cpu_keeps_upstreams_loader(train: Train) -> None:
    pinned: list[bool] = []
    note = {"on_train_start": lambda trainer: pinned.append(trainer.train_loader.pin_memory)}
    for plain in (False, True):
        train(plain=plain, device="cpu", callbacks=note)
    assert pinned[0] == pinned[1]


# Integrated GPUs share the host's memory, and were seen to be slower with copies that nobody waits for (ComfyUI#9322)


@pytest.mark.parametrize(
    ("profile", "arguments", "blocking", "ahead"),
    [
        pytest.param("155h", {}, True, False, marks=pytest.mark.xpu_profile("core-ultra-155h")),
        pytest.param(
            "155h",
            {"xpu_non_blocking": True, "xpu_prefetch": 1},
            False,
            True,
            marks=pytest.mark.xpu_profile("core-ultra-155h"),
        ),
        pytest.param("b580", {}, False, True, marks=pytest.mark.xpu_profile("arc-b580")),
    ],
)
def test_batches_are_copied_ahead_and_without_waiting_only_where_the_gpu_has_memory_of_its_own(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    arguments: dict[str, Any],
    blocking: bool,
    ahead: bool,
) -> None:
    seen: set[bool] = set()
    copied = dataloader.to_device

    def to_device(batch: Any, device: Any, *, non_blocking: bool) -> Any:
        seen.add(not non_blocking)
        return copied(batch, device, non_blocking=non_blocking)

    monkeypatch.setattr(dataloader, "to_device", to_device)
    trainer = train(val=False, **arguments)
    assert seen == {blocking}
    wanted = {patch.policy for patches in trainer.xpu.hooks.xpu_patches(trainer=trainer) for patch in patches}
    assert ("prefetch" in wanted) == ahead
