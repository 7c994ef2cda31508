"""Training batches are on the device before their steps: the same batches, no further waits, nothing held too long."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from ultralytics import YOLO
from ultralytics.data.build import InfiniteDataLoader

import xpu_simulator
from yolo_xpu_trainer import XPUDetectionTrainer, hookimpl
from yolo_xpu_trainer.policies.prefetch import Prefetcher
from yolo_xpu_trainer.run import Targets

from ..conftest import Train
from ..other_plugins import registered
from ..training import trainer_of

SMALL = {"epochs": 2, "imgsz": 64, "batch": 2, "workers": 2, "plots": False, "val": False, "amp": False}


@dataclass
class Seen:
    """What a training did.

    Attributes:
        batches: As its steps had them from the loader, on the host.
        came_on: The kind of device that each of them came on.
        losses: One a step.
        targets: What the host knew of each batch.
        trainer: The trainer.
    """

    batches: list[dict[str, Any]] = field(default_factory=list)
    came_on: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    targets: list[Targets | None] = field(default_factory=list)
    trainer: Any = None


Watch = Callable[..., Seen]


@pytest.fixture
def watch(train: Train) -> Watch:
    """Return a function that trains and tells what it saw; it takes what to call at which event."""

    def run(task: str = "detect", callbacks: dict[str, Any] | None = None, look: bool = True, **more: Any) -> Seen:
        seen, given = Seen(), callbacks or {}

        class WatchingTrainer(trainer_of(task)):  # type: ignore[misc]
            def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
                seen.came_on.append(batch["img"].device.type)
                if look:
                    seen.batches.append({k: on_host(v) for k, v in batch.items()})
                return super().preprocess_batch(batch)  # type: ignore[no-any-return]

        def note(trainer: Any) -> None:
            seen.losses.append(trainer.loss.item())
            seen.targets.append(trainer.xpu.targets)
            if "on_train_batch_end" in given:
                given["on_train_batch_end"](trainer)

        noting = {**given, "on_train_batch_end": note}
        seen.trainer = train(task, trainer=WatchingTrainer, callbacks=noting, **{**SMALL, **more})
        return seen

    return run


def on_host(value: Any) -> Any:
    """Return a copy of a value on the host, made by a kernel where the value is on the device."""
    return value.clone().cpu() if isinstance(value, torch.Tensor) else value


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is type(b)
        assert list(a) == list(b)
        for key in a:
            if isinstance(b[key], torch.Tensor):
                assert a[key].dtype == b[key].dtype
                assert a[key].shape == b[key].shape
                assert a[key].stride() == b[key].stride()
                assert torch.equal(a[key], b[key])
            else:
                assert a[key] == b[key]


def images_on_the_device() -> int:
    """Count the batches of images on the device that aren't normalised yet."""
    gc.collect()
    found = (value for value in gc.get_objects() if type(value) is torch.Tensor)
    return sum(v.device.type == "xpu" and v.dtype is torch.uint8 and v.dim() == 4 for v in found)


# The same training


@pytest.mark.parametrize(("task", "depth"), [("detect", 1), ("detect", 3), ("segment", 1), ("classify", 1)])
def test_batches_and_losses_are_those_of_a_run_that_does_not_look_ahead(watch: Watch, task: str, depth: int) -> None:
    given = {"epochs": 3, "close_mosaic": 1, "multi_scale": 0.5}
    plain = watch(task, xpu_prefetch=0, **given)
    with xpu_simulator.asynchronous():
        ahead = watch(task, xpu_prefetch=depth, **given)
    assert set(plain.came_on) == {"cpu"}
    assert set(ahead.came_on) == {"xpu"}
    assert len(plain.batches) == 3 * len(plain.trainer.train_loader)
    assert_same(ahead.batches, plain.batches)
    assert ahead.losses == plain.losses
    assert ahead.targets == plain.targets
    assert (None in plain.targets) == (task == "classify")


@pytest.mark.parametrize("non_blocking", [True, False])
def test_a_step_waits_no_more_often_and_copies_its_batch_twice(watch: Watch, non_blocking: bool) -> None:
    def second_epoch(depth: int) -> Any:
        counting = xpu_simulator.count()
        counted: list[Any] = []

        def start(trainer: Any) -> None:
            if trainer.epoch == 1:
                counted.append(counting.__enter__())

        def end(trainer: Any) -> None:
            if trainer.epoch == 1:
                counting.__exit__(None, None, None)

        callbacks = {"on_train_epoch_start": start, "on_train_epoch_end": end}
        given = {"xpu_non_blocking": non_blocking, "xpu_log_every": 1e9, "imgsz": 160}
        watch("detect", callbacks, look=False, xpu_prefetch=depth, **given)
        return counted[0]

    plain, ahead = second_epoch(0), second_epoch(1)
    assert sum(ahead.syncs.values()) == sum(plain.syncs.values())
    assert ahead.h2d == plain.h2d
    assert ahead.h2d["pinned", "non_blocking" if non_blocking else "blocking"] == 2 * 4  # images, and the rest
    assert ahead.launches == plain.launches


def test_a_run_needs_memory_for_one_more_batch_of_images(watch: Watch) -> None:
    peaks: dict[int, int] = {}
    for depth in (0, 1, 2):
        gc.collect()  # trainers of tests before
        torch.xpu.reset_peak_memory_stats()
        before = torch.xpu.memory_stats()["requested_bytes.all.current"]
        watch(look=False, xpu_prefetch=depth, imgsz=160, epochs=3, xpu_channels_last=False)  # which holds a batch twice
        peaks[depth] = torch.xpu.memory_stats()["requested_bytes.all.peak"] - before  # without the allocator's rounding
    image, labels = 2 * 3 * 160 * 160, 4096
    assert peaks[0] < peaks[1] <= peaks[0] + image + labels
    assert peaks[1] <= peaks[2] <= peaks[0] + 2 * (image + labels)


# Where it stops


def test_nothing_is_held_between_epochs(watch: Watch) -> None:
    held: list[int] = []
    watch(callbacks={"on_train_epoch_end": lambda trainer: held.append(images_on_the_device())}, look=False)
    assert held == [0, 0]


@pytest.mark.parametrize("reason", ["a callback", "a time limit"])
def test_an_epoch_that_is_left_early_lets_go_of_its_batches(watch: Watch, reason: str) -> None:
    held: dict[str, int] = {}

    def stop(trainer: Any) -> None:
        held["in the epoch"] = images_on_the_device()
        if reason == "a callback":
            trainer.stop = True
        else:
            trainer.args.time = 1e-9

    def look(validator: Any) -> None:
        held.setdefault("in validation", images_on_the_device())

    callbacks = {"on_train_batch_end": stop, "on_val_start": look}
    seen = watch(callbacks=callbacks, look=False, xpu_prefetch=2, nbs=2, warmup_epochs=0)
    assert len(seen.losses) == (1 if reason == "a callback" else 2 - 1)
    assert held == {"in the epoch": 2, "in validation": 0}
    assert seen.trainer.last.exists()


def test_a_run_that_halves_its_batch_lets_go_of_the_old_ones_and_goes_on_as_without_looking_ahead(
    watch: Watch,
) -> None:
    def run(depth: int) -> tuple[Seen, list[int]]:
        held: list[int] = []

        def order(trainer: Any) -> None:
            if not held:
                held.append(images_on_the_device())
                xpu_simulator.faults.out_of_memory(at_launch=50)

        def rebuild(trainer: Any) -> None:
            held.append(images_on_the_device())

        class Plugin:
            @hookimpl
            def xpu_wrap_dataloader(self, trainer: Any, mode: str) -> None:
                if mode == "train" and held:
                    rebuild(trainer)

        with registered(Plugin()):
            return watch(callbacks={"on_train_batch_start": order}, batch=4, xpu_prefetch=depth), held

    (plain, _), (ahead, held) = run(0), run(1)
    assert ahead.trainer.batch_size == 2
    assert held == [2, 0]
    assert_same(ahead.batches, plain.batches)
    assert ahead.losses == plain.losses


def test_a_batch_that_does_not_fit_ahead_of_its_step_is_moved_in_it(watch: Watch, log: list[logging.LogRecord]) -> None:
    class Plugin:
        moves = 0

        @hookimpl
        def xpu_move_batch(self, batch: dict[str, Any]) -> None:
            self.moves += 1
            if self.moves == 3:
                raise torch.OutOfMemoryError("XPU out of memory. Tried to allocate 20.00 MiB.")

    plain = watch(xpu_prefetch=0)
    with registered(Plugin()):
        ahead = watch()
    assert ahead.came_on == ["xpu"] * 2 + ["cpu"] * 6
    assert ahead.losses == plain.losses
    assert ahead.targets == plain.targets
    (warning,) = [r.getMessage() for r in log if "ahead" in r.getMessage()]
    assert "out of memory" in warning


# What it stands down for


def test_loaders_that_it_has_no_business_with_stay_as_they_are(watch: Watch) -> None:
    seen = watch(epochs=1)
    assert type(seen.trainer.train_loader) is Prefetcher
    assert type(seen.trainer.test_loader) is InfiniteDataLoader
    for off in ({"xpu_prefetch": 0}, {"workers": 0}):
        seen = watch(epochs=1, **off)
        assert type(seen.trainer.train_loader) is InfiniteDataLoader
        assert set(seen.came_on) == {"cpu"}


def test_torch_2_5_can_not_keep_memory_for_another_stream(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: torch.Tensor, stream: Any) -> None:
        raise NotImplementedError("Could not run 'aten::record_stream' with arguments from the 'XPU' backend.")

    monkeypatch.setattr(torch.Tensor, "record_stream", missing)
    assert type(watch(epochs=1).trainer.train_loader) is InfiniteDataLoader


def test_its_attributes_are_the_loaders(watch: Watch) -> None:
    loader = watch(epochs=1).trainer.train_loader
    inner = loader.__wrapped__
    assert isinstance(loader, InfiniteDataLoader)
    assert isinstance(loader, DataLoader)
    assert len(loader) == len(inner) == 4
    for name in ("dataset", "sampler", "batch_sampler", "batch_size", "num_workers", "drop_last", "pin_memory"):
        assert getattr(loader, name) is getattr(inner, name)
    loader.pin_memory_device = loader.note = "xpu"
    assert inner.pin_memory_device == inner.note == "xpu"
    assert not hasattr(loader, "nothing")
    with pytest.raises(AttributeError):
        loader.nothing  # noqa: B018
    loader.reset()
    list(loader)
    before = loader.iterator
    assert before is inner.iterator is not None
    loader.reset()
    assert loader.iterator is inner.iterator is not before


# Beside other plugins


def test_another_plugins_loader_is_looked_ahead_in_and_its_way_of_moving_kept(watch: Watch) -> None:
    from yolo_xpu_trainer.policies import dataloader

    streams: set[Any] = set()

    class Plugin:
        @hookimpl
        def xpu_wrap_dataloader(self, loader: Any, mode: str) -> Any:
            loader.theirs = True
            return loader

        @hookimpl
        def xpu_move_batch(self, trainer: Any, batch: dict[str, Any]) -> Any:
            assert batch["img"].device.type == "cpu"
            streams.add(torch.xpu.current_stream())
            return {**dataloader.xpu_move_batch(trainer, batch), "nested": [{"here": torch.ones(1).to(trainer.device)}]}

    with registered(Plugin()):
        seen = watch()
    assert seen.trainer.train_loader.__wrapped__.theirs
    assert torch.xpu.current_stream() not in streams
    assert len(streams) == 1
    assert all(batch["nested"][0]["here"].item() == 1 for batch in seen.batches)


def test_targets_that_were_exchanged_are_not_taken_for_those_that_were_counted(watch: Watch) -> None:
    class ExchangingTrainer(XPUDetectionTrainer):
        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch["batch_idx"] = torch.zeros_like(batch["batch_idx"])
            batch = super().preprocess_batch(batch)
            assert self.xpu is not None
            targets.append(self.xpu.targets)
            return batch

    targets: list[Targets | None] = []
    seen = watch(epochs=1)
    arguments = {name: getattr(seen.trainer.args, name) for name in ("data", "project")}
    YOLO("yolo11n.yaml").train(trainer=ExchangingTrainer, **{**SMALL, **arguments, "epochs": 1})
    assert targets == [None] * 4
