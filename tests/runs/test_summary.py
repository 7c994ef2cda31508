"""A run says at its end what it was waiting for, and asks the device nothing for that."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.data.dataset import YOLODataset

import xpu_simulator
from yolo_xpu_trainer import XPUDetectionTrainer
from yolo_xpu_trainer.policies import summary
from yolo_xpu_trainer.stopwatch import STOPWATCH, Stopwatch

from ..conftest import Train


def written(trainer: Any) -> dict[str, Any]:
    """Return what a run's file says."""
    return json.loads((Path(trainer.save_dir) / "xpu_summary.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def said(log: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in log if " images/s in training" in record.getMessage()]


class Slow(YOLODataset):
    """Images that take long to be loaded."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.4)
        return super().__getitem__(index)


class SlowTrainer(XPUDetectionTrainer):
    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        dataset = super().build_dataset(img_path, mode, batch)
        if mode == "train":
            dataset.__class__ = Slow
        return dataset


def test_slow_data_is_what_a_run_was_waiting_for(train: Train, log: list[logging.LogRecord]) -> None:
    found = written(train(trainer=SlowTrainer, batch=2, val=False))
    assert found["completed"]
    assert (found["batches"], found["images"]) == (4, 8)
    assert found["shares"]["data"] * found["seconds"] > 8 * 0.39
    assert found["advice"] == [f"workers={min(summary._processors(), 8)}", "cache=disk"]
    (line,) = said(log)
    assert f"{found['shares']['data']:.0%} waiting for data" in line
    assert line.endswith(f"Because batches are loaded too slowly, try {' or '.join(found['advice'])}")


def test_workers_are_waited_for_while_batches_are_prefetched(train: Train) -> None:
    found = written(train(trainer=SlowTrainer, batch=2, workers=1, val=False))
    assert found["batches"] == 4
    assert found["first_batches_seconds"] > 2 * 0.39


def test_what_takes_no_time_is_not_named(train: Train, log: list[logging.LogRecord]) -> None:
    trainer = train(batch=2, epochs=2)
    found = written(trainer)
    assert found["advice"] == []
    assert found["images"] == 16
    assert found["images_per_second"] == pytest.approx(16 / found["training_seconds"], rel=0.01)
    assert 0.99 < sum(found["shares"].values()) <= 1
    assert found["shares"].keys() == found["meanings"].keys()
    for name in ("setup", "steps", "validation", "saving"):
        assert found["shares"][name] > 0, name
    assert found["syncs"]["losses"]["times"] >= 2
    assert found["syncs"]["targets"]["times"] >= 8
    assert found["total_memory"] == trainer.xpu.device.total_memory
    assert [found[name] for name in ("utilization", "power", "energy", "images_per_joule")] == [None] * 4
    (line,) = said(log)
    assert "try" not in line


def test_it_costs_no_kernel_no_wait_and_no_memory(train: Train) -> None:
    """That of a first run isn't counted: it makes what others find."""
    losses: list[Any] = []
    counts: list[xpu_simulator.Counts] = []
    peaks: list[int] = []
    for plugins in ("-summary", "-summary", "*"):
        gc.collect()
        held = torch.xpu.memory_allocated()
        torch.xpu.reset_peak_memory_stats()
        with xpu_simulator.count() as counted:
            trainer = train(xpu_plugins=plugins, xpu_log_every=1e9, imgsz=64, val=False, save=False)
        counts.append(counted)
        peaks.append(torch.xpu.max_memory_allocated() - held)
        losses.append({name: value.item() for name, value in trainer.tloss.items()})
        assert (Path(trainer.save_dir) / "xpu_summary.json").exists() == (plugins == "*")
        del trainer
    _, without, with_it = counts
    for name in (
        "launches",
        "item_syncs",
        "implicit_syncs",
        "device_syncs",
        "stream_syncs",
        "event_syncs",
        "d2h",
        "h2d",
    ):
        assert getattr(with_it, name) == getattr(without, name), name
    assert sum(with_it.syncs.values()) == sum(without.syncs.values())
    assert losses[1] == losses[2]
    assert peaks[1] == peaks[2]


def test_it_costs_less_than_a_200th_of_a_short_step(train: Train) -> None:
    """A step of 20 ms is short: at 50 a second, an epoch of COCO in batches of 16 takes two and a half minutes."""
    watches: list[Stopwatch] = []
    train(imgsz=64, callbacks={"on_train_end": lambda trainer: watches.append(trainer.xpu.stash[STOPWATCH])})
    (watch,) = watches
    stretches = sum(watch.times.values()) / watch.batches
    assert 2 <= stretches < 20  # a batch is waited for, and copied
    idle = Stopwatch("idle")
    mask = torch.ones(2, 8, 1, dtype=torch.bool)

    def stretch() -> None:
        with idle.during("stretch"):
            pass

    def watched() -> None:  # once a step
        mask.bool().as_subclass(summary._Mask).as_subclass(torch.Tensor)  # type: ignore[no-untyped-call]

    assert stretches * seconds_of(stretch) + seconds_of(watched) < 0.005 * 0.020


def seconds_of(call: Callable[[], None]) -> float:
    """Return the processor time that a call takes, on a machine that may be busy."""
    found = []
    for _ in range(5):
        begun = time.thread_time()
        for _ in range(1000):
            call()
        found.append((time.thread_time() - begun) / 1000)
    return min(found)


def test_a_run_that_fails_writes_what_it_has(train: Train, log: list[logging.LogRecord], tmp_path: Path) -> None:
    def fail(trainer: Any) -> None:
        raise KeyError("of a user")

    with pytest.raises(KeyError, match="of a user"):
        train(callbacks={"on_train_batch_end": fail})
    (file,) = tmp_path.rglob("xpu_summary.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert not found["completed"]
    assert found["batches"] == 1
    assert said(log) == []


def test_a_run_without_a_batch_writes_nothing(train: Train, tmp_path: Path) -> None:
    def fail(trainer: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        train(callbacks={"on_train_start": fail})
    assert not list(tmp_path.rglob("xpu_summary.json"))


def test_a_file_that_can_not_be_written_costs_no_run(train: Train, log: list[logging.LogRecord]) -> None:
    trainer = train(
        val=False, callbacks={"on_train_end": lambda trainer: (trainer.save_dir / "xpu_summary.json").mkdir()}
    )
    assert trainer.last.exists()
    assert len(said(log)) == 1


@pytest.mark.needs("torch.xpu.utilization", "torch.xpu.power_draw")
def test_what_the_driver_tells_is_summed_up(
    train: Train, monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(summary, "_EVERY", 0.05)
    monkeypatch.setattr(torch.xpu, "utilization", lambda index: 80.0)
    monkeypatch.setattr(torch.xpu, "power_draw", lambda index: 120.0)
    found = written(train(val=False))
    assert (found["utilization"], found["power"]) == (80, 120)
    assert 0 < found["energy"] < 120 * found["seconds"]
    assert found["images_per_joule"] == pytest.approx(found["images"] / found["energy"], rel=0.01)
    assert "GPU 80% busy; 120 W" in said(log)[0]
