"""Ultralytics' own training options do on an XPU what they do elsewhere."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.utils.callbacks import default_callbacks

from ..conftest import Train

pytestmark = [pytest.mark.xpu_hardware, pytest.mark.usefixtures("xpu")]

SIZE = {"imgsz": 64, "nbs": 4}  # a step of the optimizer each batch


def test_freeze_multi_scale_close_mosaic_cache_and_save_period_are_obeyed(train: Train) -> None:
    sizes: set[int] = set()
    mosaics: list[float] = []
    before: dict[str, torch.Tensor] = {}

    def start(trainer: Any) -> None:
        before.update({k: v.detach().cpu().clone() for k, v in trainer.model.named_parameters()})
        trainer.model.model[0].register_forward_pre_hook(lambda module, inputs: sizes.add(inputs[0].shape[-1]))

    def batch_end(trainer: Any) -> None:
        mosaics.append(trainer.train_loader.dataset.transforms.transforms[0].transforms[0].p)

    asked = {"freeze": 2, "multi_scale": 0.5, "close_mosaic": 1, "cache": "ram", "save_period": 1}
    trainer = train(callbacks={"on_train_start": start, "on_train_batch_end": batch_end}, epochs=3, **asked, **SIZE)

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


def test_a_run_killed_between_epochs_resumes_as_if_nothing_had_happened(train: Train) -> None:
    killed: list[Path] = []

    def kill(trainer: Any) -> None:
        if trainer.epoch == 1:
            killed.append(trainer.last)
            raise _KilledError

    with pytest.raises(_KilledError):
        train(callbacks={"on_model_save": kill}, epochs=3, **SIZE)
    saved = torch.load(killed[0], map_location="cpu", weights_only=False)
    assert saved["epoch"] == 1

    epochs: list[int] = []
    state: list[dict[str, Any]] = []

    def start(trainer: Any) -> None:
        state.append({"updates": trainer.ema.updates, "moments": len(trainer.optimizer.state)})

    callbacks = {"on_train_start": start, "on_train_epoch_start": lambda trainer: epochs.append(trainer.epoch)}
    resumed = train(model=killed[0], resume=True, callbacks=callbacks, **SIZE)
    assert resumed.device.type == "xpu"
    assert epochs == [2]
    assert saved["updates"] == 4
    assert state == [{"updates": 4, "moments": len(saved["optimizer"]["state"])}]
    assert state[0]["moments"]
    assert all(v["exp_avg"].device.type == "xpu" for v in resumed.optimizer.state.values() if "exp_avg" in v)
    assert len((resumed.save_dir / "results.csv").read_text().splitlines()) == 1 + 3
    assert all(map(math.isfinite, resumed.metrics.values()))


def test_patience_ends_a_run_that_gets_no_better_where_a_cpu_ends_it(train: Train, tmp_path: Path) -> None:
    ended = {}
    for device in ("xpu", "cpu"):
        given = {"device": device, "amp": False, "epochs": 9, "patience": 2, "lr0": 0.0, "optimizer": "SGD"}
        trainer = train("classify", batch=16, project=str(tmp_path / device), **given)
        ended[device] = trainer.epoch
    assert ended["xpu"] == ended["cpu"] < 8


def test_time_ends_a_run_early(train: Train) -> None:
    trainer = train(epochs=300, time=2 / 3600, **SIZE)
    assert trainer.epoch < 100
    assert trainer.best.exists()


def test_callbacks_come_as_they_do_on_a_cpu_and_workers_feed_the_device(train: Train) -> None:
    came: dict[str, Counter[str]] = {"xpu": Counter(), "cpu": Counter()}
    for device, counter in came.items():
        callbacks = {
            event: lambda t, event=event, counter=counter: counter.update([event]) for event in default_callbacks
        }
        trainer = train(callbacks=callbacks, epochs=2, workers=2, device=device, **SIZE)
        assert {p.device.type for p in trainer.model.parameters()} == {device}
        if device == "xpu":
            assert trainer.train_loader.num_workers == 2
    assert came["xpu"] == came["cpu"]
    assert came["xpu"]["on_train_batch_end"] == 4
