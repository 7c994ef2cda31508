"""Ultralytics' own training options do on an XPU what they do elsewhere."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import XPUClassificationTrainer, XPUDetectionTrainer

from ..conftest import TrainingData

pytestmark = [pytest.mark.xpu_hardware, pytest.mark.usefixtures("xpu")]


def _trainer(data: str, directory: Path, **arguments: Any) -> XPUDetectionTrainer:
    return XPUDetectionTrainer(
        overrides={
            "model": "yolo11n.yaml",
            "data": data,
            "device": "xpu",
            "imgsz": 64,
            "batch": 4,
            "nbs": 4,  # a step of the optimizer each batch
            "workers": 0,
            "plots": False,
            "project": str(directory),
            "name": "run",
            "exist_ok": True,
            **arguments,
        }
    )


def test_freeze_multi_scale_close_mosaic_cache_and_save_period_are_obeyed(data: TrainingData, tmp_path: Path) -> None:
    trainer = _trainer(
        data("detect"), tmp_path, epochs=3, freeze=2, multi_scale=0.5, close_mosaic=1, cache="ram", save_period=1
    )
    sizes: set[int] = set()
    mosaics: list[float] = []
    before: dict[str, torch.Tensor] = {}

    def start(trainer: Any) -> None:
        before.update({k: v.detach().cpu().clone() for k, v in trainer.model.named_parameters()})
        trainer.model.model[0].register_forward_pre_hook(lambda module, inputs: sizes.add(inputs[0].shape[-1]))

    def batch_end(trainer: Any) -> None:
        mosaics.append(trainer.train_loader.dataset.transforms.transforms[0].transforms[0].p)

    trainer.add_callback("on_train_start", start)
    trainer.add_callback("on_train_batch_end", batch_end)
    trainer.train()

    after = {k: v.detach().cpu() for k, v in trainer.model.named_parameters()}
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    frozen = {k for k in after if k.startswith(("model.0.", "model.1.")) or ".dfl" in k}
    assert changed
    assert changed.isdisjoint(frozen)
    assert len(sizes) > 1
    assert sizes <= {32, 64, 96}
    assert mosaics[0] == 1
    assert mosaics[-1] == 0
    assert all(image is not None for image in trainer.train_loader.dataset.ims)
    assert {f.name for f in trainer.wdir.iterdir()} == {"best.pt", "last.pt", "epoch1.pt", "epoch2.pt"} | {
        f.name for f in trainer.wdir.glob("epoch0.pt")
    }


class _KilledError(Exception):
    pass


def test_a_run_killed_between_epochs_resumes_as_if_nothing_had_happened(data: TrainingData, tmp_path: Path) -> None:
    def kill(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise _KilledError

    trainer = _trainer(data("detect"), tmp_path, epochs=3)
    trainer.add_callback("on_model_save", kill)
    with pytest.raises(_KilledError):
        trainer.train()
    saved = torch.load(trainer.last, map_location="cpu", weights_only=False)
    assert saved["epoch"] == 1

    resumed = XPUDetectionTrainer(overrides={"model": str(trainer.last), "resume": True})
    epochs: list[int] = []
    state: list[dict[str, Any]] = []

    def start(trainer: Any) -> None:
        state.append({"updates": trainer.ema.updates, "moments": len(trainer.optimizer.state)})

    resumed.add_callback("on_train_start", start)
    resumed.add_callback("on_train_epoch_start", lambda trainer: epochs.append(trainer.epoch))
    resumed.train()
    assert resumed.device.type == "xpu"
    assert epochs == [2]
    assert saved["updates"] == 4
    assert state == [{"updates": 4, "moments": len(saved["optimizer"]["state"])}]
    assert state[0]["moments"]
    assert all(v["exp_avg"].device.type == "xpu" for v in resumed.optimizer.state.values() if "exp_avg" in v)
    assert len((resumed.save_dir / "results.csv").read_text().splitlines()) == 1 + 3
    assert all(map(math.isfinite, resumed.metrics.values()))


def test_patience_ends_a_run_that_gets_no_better_where_a_cpu_ends_it(data: TrainingData, tmp_path: Path) -> None:
    ended = {}
    for device in ("xpu", "cpu"):
        trainer = XPUClassificationTrainer(
            overrides={
                "model": "yolo11n-cls.yaml",
                "data": data("classify"),
                "device": device,
                "amp": False,
                "epochs": 9,
                "patience": 2,
                "lr0": 0.0,
                "optimizer": "SGD",
                "imgsz": 32,
                "workers": 0,
                "plots": False,
                "project": str(tmp_path / device),
            }
        )
        trainer.train()
        ended[device] = trainer.epoch
    assert ended["xpu"] == ended["cpu"] < 8


def test_time_ends_a_run_early(data: TrainingData, tmp_path: Path) -> None:
    trainer = _trainer(data("detect"), tmp_path, epochs=300, time=2 / 3600)
    trainer.train()
    assert trainer.epoch < 100
    assert trainer.best.exists()


def test_callbacks_come_as_they_do_on_a_cpu_and_workers_feed_the_device(data: TrainingData, tmp_path: Path) -> None:
    came: dict[str, Counter[str]] = {"xpu": Counter(), "cpu": Counter()}
    for device, counter in came.items():
        trainer = _trainer(data("detect"), tmp_path, epochs=2, workers=2, device=device)
        for event in list(trainer.callbacks):
            trainer.add_callback(event, lambda t, event=event, counter=counter: counter.update([event]))
        trainer.train()
        assert {p.device.type for p in trainer.model.parameters()} == {device}
        if device == "xpu":
            assert trainer.train_loader.num_workers == 2
    assert came["xpu"] == came["cpu"]
    assert came["xpu"]["on_train_batch_end"] == 4
