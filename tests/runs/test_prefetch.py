"""Training batches are on the device before their steps: the same batches, no more syncs, nothing held too long."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from ultralytics.data.build import InfiniteDataLoader

import xpu_simulator
from yolo_xpu_trainer import XPUDetectionTrainer, hookimpl
from yolo_xpu_trainer.batches import AheadBatches
from yolo_xpu_trainer.policies import loss_syncs
from yolo_xpu_trainer.policies.loss_syncs import LabelCounts

from ..conftest import Train
from ..other_plugins import registered

pytestmark = pytest.mark.slow

SMALL = {"epochs": 2, "imgsz": 64, "batch": 2, "workers": 2, "plots": False, "val": False, "amp": False}


@dataclass
class Seen:
    """What a training did.

    Attributes:
        batches: As its steps had them before they were normalised, copied to the host.
        ahead: Whether the copy of each to the device was begun ahead of its step.
        losses: One a step.
        counts: What the host knew of each batch's labels.
        trainer: The trainer.
    """

    batches: list[dict[str, Any]] = field(default_factory=list)
    ahead: list[bool] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    counts: list[LabelCounts | None] = field(default_factory=list)
    trainer: Any = None


Watch = Callable[..., Seen]


@pytest.fixture
def watch(train: Train, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Return a function that trains and tells what it saw; it takes what to call at which event."""
    arrived: list[None] = []
    arrive = AheadBatches.arrive

    def noted(self: AheadBatches, batch: object) -> Any:
        found = arrive(self, batch)
        if found is not None:
            arrived.append(None)
        return found

    monkeypatch.setattr(AheadBatches, "arrive", noted)

    def run(task: str = "detect", callbacks: dict[str, Any] | None = None, look: bool = True, **more: Any) -> Seen:
        seen, given = Seen(), callbacks or {}

        class Watcher:
            @hookimpl
            def xpu_arrange_batch(self, trainer: Any, batch: dict[str, Any]) -> None:
                seen.ahead.append(bool(arrived))
                arrived.clear()
                index = batch.get("batch_idx")
                seen.counts.append(None if index is None else loss_syncs._counts_of(trainer.xpu, index))
                if look:
                    seen.batches.append({k: on_host(v) for k, v in batch.items()})

        def note(trainer: Any) -> None:
            seen.losses.append(trainer.loss.item())
            if "on_train_batch_end" in given:
                given["on_train_batch_end"](trainer)

        with registered(Watcher()):
            seen.trainer = train(task, callbacks={**given, "on_train_batch_end": note}, **{**SMALL, **more})
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
    assert set(plain.ahead) == {False}
    assert set(ahead.ahead) == {True}
    assert len(plain.batches) == 3 * len(plain.trainer.train_loader)
    assert_same(ahead.batches, plain.batches)
    assert ahead.losses == plain.losses
    assert ahead.counts == plain.counts
    assert (None in plain.counts) == (task == "classify")


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
    assert ahead.ahead == [True] * 2 + [False] * 6
    assert ahead.losses == plain.losses
    assert ahead.counts == plain.counts
    (warning,) = [r.getMessage() for r in log if "ahead" in r.getMessage()]
    assert "out of memory" in warning


# Where it doesn't apply


def test_the_trainers_loader_is_the_one_that_was_built_and_its_batches_are_on_the_host(watch: Watch) -> None:
    seen: list[Any] = []

    def look(trainer: Any) -> None:
        assert type(trainer.train_loader) is InfiniteDataLoader
        seen.append(next(iter(trainer.train_loader))["img"].numpy())

    assert all(watch(callbacks={"on_train_start": look}, epochs=1).ahead)
    assert len(seen) == 1


@pytest.mark.parametrize("off", [{"xpu_prefetch": 0}, {"workers": 0}], ids=str)
def test_it_is_off(watch: Watch, off: dict[str, int]) -> None:
    assert not any(watch(epochs=1, **off).ahead)


def test_torch_2_5_can_not_keep_memory_for_another_stream(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: torch.Tensor, stream: Any) -> None:
        raise NotImplementedError("Could not run 'aten::record_stream' with arguments from the 'XPU' backend.")

    monkeypatch.setattr(torch.Tensor, "record_stream", missing)
    assert not any(watch(epochs=1).ahead)


@pytest.mark.parametrize("given", [{}, {"xpu_prefetch": 1}], ids=str)
def test_a_users_preprocess_batch_sees_the_host_and_may_change_it(
    train: Train, log: list[logging.LogRecord], given: dict[str, int]
) -> None:
    devices_seen: list[str] = []

    class Mine(XPUDetectionTrainer):
        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            devices_seen.append(batch["img"].device.type)
            if not given:
                batch["img"].numpy()[:] = 7  # which no tensor's version tells
            batch = super().preprocess_batch(batch)
            assert batch["img"].device.type == "xpu"
            if not given:
                assert batch["img"].unique().tolist() == [pytest.approx(7 / 255)]
            return batch

    train(trainer=Mine, **SMALL, **given)
    assert set(devices_seen) == {"cpu"}
    said = [r.getMessage() for r in log if "not prefetched, because Mine.preprocess_batch" in r.getMessage()]
    assert len(said) == (not given)


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
    assert seen.trainer.train_loader.theirs
    assert torch.xpu.current_stream() not in streams
    assert len(streams) == 1
    assert all(batch["nested"][0]["here"].item() == 1 for batch in seen.batches)
