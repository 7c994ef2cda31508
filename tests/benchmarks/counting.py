"""Trains once, and counts what a step, a validation and a saved checkpoint do on the simulated device."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

import xpu_simulator
from xpu_simulator import Counts
from xpu_simulator.counters import read

COUNTED = 1  # the second epoch is in steady state
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "imgsz": 64,
    "batch": 4,
    "nbs": 4,  # every batch ends in an optimizer step
    "workers": 1,
    "cache": "ram",
    "warmup_epochs": 0,
    "plots": False,
    "seed": 0,
    "exist_ok": True,
    "device": "xpu:0",
    "verbose": False,
}


_SAVES = 6


@dataclass
class Counted:
    """What one training did on the device.

    Attributes:
        step: What an epoch's steps did, all together.
        steps: How many there were.
        validation: What a validation after an epoch did.
        images: How many images it had.
        save: What the saving of a checkpoint did.
        peak_memory: The most bytes that tensors held in a step.
        peaks: The most bytes that they held, by moment.
        seconds: How long the host took for each step, from the end of the one before, but for each epoch's first
            and last: without what it computed and copied in the device's place.
        save_seconds: How long each saving of a checkpoint took that replaced one, without the disk's own time.
    """

    step: Counts = field(default_factory=Counts)
    steps: int = 0
    validation: Counts = field(default_factory=Counts)
    images: int = 0
    save: Counts = field(default_factory=Counts)
    peak_memory: int = 0
    peaks: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    save_seconds: list[float] = field(default_factory=list)

    @property
    def least_seconds(self) -> float:
        """How long the host takes for a step when nothing else delays it."""
        return min(self.seconds)

    @property
    def least_save_seconds(self) -> float:
        """How long the saving of a checkpoint takes when nothing else delays it."""
        return min(self.save_seconds)


def waits(counts: Counts) -> int:
    """Return how often the host waited for the device."""
    return sum(counts.syncs.values())


def lines(counts: Counts, per: int) -> Counter[str]:
    """Return how often the host waited at each line, and for what, `per` steps or images."""
    found: Counter[str] = Counter()
    for (kind, line), n in counts.syncs.items():
        found[f"{line} ({kind})"] += n / per  # type: ignore[assignment]
    return found


def train(
    trainer: type,
    model: str,
    data: str,
    options: Mapping[str, Any],
    around: Callable[[], Any] = nullcontext,
    lines: bool = True,
) -> Counted:
    """Train for two epochs or more and count in the second.

    Args:
        trainer: An Ultralytics trainer, or one of ours.
        model: The model's YAML file.
        data: The data set.
        options: Arguments of `train()` beside `SETTINGS`.
        around: What holds for as long as it trains.
        lines: Whether to count, by the lines that wait, which takes time.
    """
    from ultralytics import YOLO

    done = Counted()
    gc.collect()  # a trainer and its model are a cycle: the last one's would count
    with around():
        found = YOLO(model)
        found.add_callback("on_train_start", settle)
        for event, callback in _stopwatch(done, lines).items():
            found.add_callback(event, callback)
        found.train(trainer=_counting(trainer, done), data=data, **{**SETTINGS, **options})
    return done


def settle(trainer: Any) -> None:
    """Let a gradient scaler start at a scale at which no step is skipped: a skipped one doesn't count."""
    if trainer.scaler.is_enabled():
        trainer.scaler = torch.amp.GradScaler("xpu", init_scale=1.0)


def _counting(trainer: type, done: Counted) -> type:
    """Return a trainer that counts while it validates and saves."""

    def validate(self: Any) -> Any:
        with _into(done.validation, when=self.epoch == COUNTED):
            result = super(counting, self).validate()  # type: ignore[misc]
        done.images = len(self.test_loader.dataset)
        return result

    def save_model(self: Any) -> Any:
        with _into(done.save, when=self.epoch == COUNTED):
            return super(counting, self).save_model()  # type: ignore[misc]

    counting = type(trainer.__name__, (trainer,), {"validate": validate, "save_model": save_model})
    return counting


@contextmanager
def _into(target: Counts, when: bool) -> Iterator[None]:
    if not when:
        yield
        return
    with xpu_simulator.count() as counts:
        yield
    vars(target).update(vars(counts))


def _stopwatch(done: Counted, lines: bool) -> dict[str, Callable[[Any], None]]:
    """Return callbacks that count the second epoch's steps, and time them."""
    counting: list[Any] = []
    ended: list[float] = []  # when the last step did, without the time of kernels

    def start(trainer: Any) -> None:
        ended.clear()
        if trainer.epoch == COUNTED:
            torch.xpu.reset_peak_memory_stats()
            counting.append(_into(done.step, when=lines))
            counting[-1].__enter__()

    def end(trainer: Any) -> None:
        del done.seconds[-1:]  # no batch is copied ahead in an epoch's last step
        if trainer.epoch == COUNTED:
            counting.pop().__exit__(None, None, None)
            done.steps = len(trainer.train_loader)
            done.peak_memory = torch.xpu.max_memory_allocated()
            if not lines:
                _time_saves(trainer, done)

    def batch_end(trainer: Any) -> None:
        now = time.perf_counter()
        of_kernels = read().kernel_seconds
        done.seconds += [now - of_kernels - last for last in ended]
        ended[:] = [time.perf_counter() - of_kernels]  # the reading itself takes time

    return {
        "on_train_epoch_start": start,
        "on_train_epoch_end": end,
        "on_train_batch_end": batch_end,
    }


def _time_saves(trainer: Any, done: Counted) -> None:
    """Save a few times, and leave nothing: the first one has no file to replace."""
    for _ in range(_SAVES):
        began = time.perf_counter()
        with _flushes() as flushed:
            trainer.save_model()
        done.save_seconds.append(time.perf_counter() - began - sum(flushed))
        time.sleep(0.1)  # in a run an epoch lies between two
    del done.save_seconds[-_SAVES]
    trainer.last.unlink()
    trainer.best.unlink(missing_ok=True)


@contextmanager
def _flushes() -> Iterator[list[float]]:
    """Note how long the disk takes to confirm what is written, in seconds: plain Ultralytics doesn't ask it to."""
    fsync, took = os.fsync, []

    def flush(file: int) -> None:
        began = time.perf_counter()
        fsync(file)
        took.append(time.perf_counter() - began)

    os.fsync = flush  # type: ignore[assignment]
    try:
        yield took
    finally:
        os.fsync = fsync
