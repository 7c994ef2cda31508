"""What a run was waiting for, in figures: as a line, as a file, and as advice where that is clear."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...stopwatch import DATA, FIRST_DATA, LOSSES, STEPS, TARGETS

__all__ = ["COPIES", "OTHER", "SAVING", "SETUP", "VALIDATION", "Summary"]

SETUP, OTHER = "setup", "other"
"""Phases of a run, beside its steps."""
COPIES, VALIDATION, SAVING = "copies", "validation", "saving"
"""Stretches of time, beside the data's."""
_SYNCS = (LOSSES, TARGETS)

# What the file says of its shares.
_MEANINGS = {
    SETUP: "before the first epoch: model, data set, checks",
    DATA: "waiting for the training loader's next batch, its start in each epoch included",
    COPIES: "copying training batches to the GPU: submitting the copies, or waiting for those that block",
    "syncs": "waiting for the GPU where that is known: to show losses, and to find the anchors that have targets",
    STEPS: "all else in epochs: submitting forward, backward and the optimizer's step, callbacks, and waits for the "
    "GPU that can't be told from that",
    VALIDATION: "validating, after epochs and at the end, with its data, copies and waits",
    SAVING: "writing checkpoints, with copying them from the GPU",
    OTHER: "the rest: metrics, plots, clearing memory",
}


@dataclass(frozen=True)
class Summary:
    """What a run was waiting for.

    Attributes:
        seconds: How long each phase and each stretch of the run took, each second once.
        times: How often each stretch was begun.
        batches: How many training batches were loaded.
        images: How many images they had, of all devices together.
        devices: How many GPUs the run had; all else is of the first one and its process.
        device: Its name.
        integrated: Whether it shares the host's memory.
        total_memory: Its memory in bytes.
        peaks: The most bytes that were "allocated" and "reserved"; what an earlier run of the process had as much of is
            left out.
        readings: Means of what the driver told while it trained: "utilization" in %, "power_draw" in W.
        sampled_seconds: How long that was.
        batch: The batch size at the end.
        nominal_batch: How many images Ultralytics has a step of the optimizer on, whatever the batch size.
        workers: How many processes were to load training batches; less did where there are few.
        processors: How many processors there are for that.
        cached: Whether images are cached.
    """

    seconds: Mapping[str, float]
    times: Mapping[str, int]
    batches: int
    images: int
    device: str = ""
    devices: int = 1
    integrated: bool = False
    total_memory: int = 0
    peaks: Mapping[str, int] = field(default_factory=dict)
    readings: Mapping[str, float] = field(default_factory=dict)
    sampled_seconds: float = 0.0
    batch: int = 0
    nominal_batch: int = 0
    workers: int = 0
    processors: int = 1
    cached: bool = False

    @property
    def total(self) -> float:
        """The seconds that the run took."""
        return sum(self.seconds.values())

    @property
    def training(self) -> float:
        """The seconds that were spent in epochs, without validation and saving."""
        return self._sum(*_IN_EPOCHS)

    @property
    def images_per_second(self) -> float:
        """How many images were trained in a second of that."""
        return self.images / self.training if self.training and self.seconds.get(STEPS) else 0.0

    @property
    def energy(self) -> float | None:
        """The joules that the device took while it trained and validated, estimated from its power."""
        power = self.readings.get("power_draw")
        return None if power is None else power * self.sampled_seconds

    @property
    def images_per_joule(self) -> float | None:
        """How many images were trained for a joule; of several GPUs by the first one's share of both."""
        return self.images / self.devices / self.energy if self.energy else None

    def shares(self) -> dict[str, float]:
        """Return the parts of the run's time by what they were spent on; what is left of 1 is rounding."""
        parts = {
            SETUP: self._sum(SETUP),
            DATA: self._sum(DATA, FIRST_DATA),
            COPIES: self._sum(COPIES),
            "syncs": self._sum(*_SYNCS),
            STEPS: self._sum(STEPS),
            VALIDATION: self._sum(VALIDATION),
            SAVING: self._sum(SAVING),
            OTHER: self._sum(OTHER),
        }
        return {name: math.floor(1e4 * part / self.total) / 1e4 for name, part in parts.items()}

    def advice(self) -> list[str]:
        """Return arguments of `train()` that would clearly make the run faster, as they are given."""
        if not self.training:
            return []
        waited = self.seconds.get(DATA, 0.0) / self.training
        if waited > _MUCH and self.times.get(DATA, 0) >= _LEAST_BATCHES:
            workers = min(self.processors, max(2 * self.workers, _WORKERS))
            return [f"workers={workers}"] * (workers > self.workers) + ["cache=disk"] * (not self.cached)
        return [f"batch={2 * self.batch}"] if waited < _LITTLE and self._has_room() else []

    def _has_room(self) -> bool:
        """Whether the device has memory for twice the batch, and its driver says that it is idle much of the time."""
        reserved = self.peaks.get("reserved", self.total_memory)
        if self.integrated or reserved > _PART * self.total_memory or 2 * self.batch > self.nominal_batch:
            return False
        return self.times.get(DATA, 0) >= _LEAST_STEPS and self.readings.get("utilization", 100.0) < _BUSY

    def _sum(self, *names: str) -> float:
        return sum(self.seconds.get(name, 0.0) for name in names)

    def as_dict(self) -> dict[str, Any]:
        """Return everything by name, of built-in types: times in seconds, memory in bytes, energy in joules."""
        seconds = {name: round(self.seconds.get(name, 0.0), 3) for name in (FIRST_DATA, *_SYNCS)}
        return {
            "seconds": round(self.total, 3),
            "training_seconds": round(self.training, 3),
            "batches": self.batches,
            "images": self.images,
            "images_per_second": round(self.images_per_second, 3),
            "shares": self.shares(),
            "meanings": _MEANINGS,
            "first_batches_seconds": seconds[FIRST_DATA],
            "syncs": {name: {"times": self.times.get(name, 0), "seconds": seconds[name]} for name in _SYNCS},
            "device": self.device,
            "devices": self.devices,
            "total_memory": self.total_memory,
            "peak_memory": {kind: self.peaks.get(kind) for kind in ("allocated", "reserved")},
            "utilization": _rounded(self.readings.get("utilization")),
            "power": _rounded(self.readings.get("power_draw")),
            "energy": _rounded(self.energy),
            "images_per_joule": _rounded(self.images_per_joule),
            "advice": self.advice(),
        }

    def __str__(self) -> str:
        shares = self.shares()
        parts = [_SAID[name].format(shares[name]) for name in _SAID if shares[name] >= 0.005 or name == DATA]
        speed = f"{_figure(self.images_per_second)} images/s in training"  # unknown where users' loaders give no images
        phrases = [speed] if self.images_per_second else []
        phrases.append(f"{_duration(self.total)} in all: {', '.join(parts)}")
        if (peak := self.peaks.get("reserved")) is not None:
            phrases.append(f"peak memory {peak / 2**30:.1f} of {self.total_memory / 2**30:.1f} GiB")
        if (busy := self.readings.get("utilization")) is not None:
            phrases.append(f"GPU {busy:.0f}% busy")
        if self.images_per_joule is not None:
            phrases.append(f"{self.readings['power_draw']:.0f} W, {_figure(self.images_per_joule)} images/J")
        return "; ".join(phrases) + _sentence(self.advice())


_IN_EPOCHS = (STEPS, DATA, FIRST_DATA, COPIES, *_SYNCS)
_SAID = {
    DATA: "{:.0%} waiting for data",
    COPIES: "{:.0%} copying batches",
    "syncs": "at least {:.0%} waiting for the GPU",
    VALIDATION: "{:.0%} validation",
    SAVING: "{:.0%} saving",
}

# Advice is given where a run waited for data for this share of its epochs, each one's first batch left out, …
_MUCH, _LEAST_BATCHES, _WORKERS = 0.2, 3, 8
# … or where in many steps it hardly did, the device was idle for much of the time, and little of its memory was used.
_LITTLE, _LEAST_STEPS, _BUSY, _PART = 0.05, 100, 60.0, 0.45


def _sentence(arguments: list[str]) -> str:
    """Return advice as the end of a line."""
    if not arguments:
        return ""
    idle = "the GPU is idle for much of the time and has memory to spare"
    seen = idle if arguments[0].startswith("batch") else "batches are loaded too slowly"
    return f". Because {seen}, try {' or '.join(arguments)}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
