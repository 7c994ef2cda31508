"""Where the host's time goes in a run: stretches of it that policies name, each counted once."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from .run import Run, StashKey

__all__ = ["DATA", "FIRST_DATA", "LOSSES", "STEPS", "STOPWATCH", "TARGETS", "Stopwatch", "timed", "timed_batches"]

STEPS = "steps"
"""The phase of a run in which it goes through an epoch's batches."""
DATA, FIRST_DATA = "data", "first_data"
"""Waiting for a training batch; for an epoch's first one, when workers are started and nothing is loaded yet."""
LOSSES, TARGETS = "losses", "targets"
"""Waiting for the device to show losses; to find the anchors that a loss has targets for."""


class Stopwatch:
    """Divides the time since it was made among what the host did in it. It never asks the device anything.

    A stretch within another one is a part of that one.

    Args:
        phase: What the time is counted for that belongs to no stretch.

    Attributes:
        seconds: How long each phase, less its stretches, and each stretch took; up to date once `stop()` was called.
        times: How often each stretch was begun.
        batches: How many training batches the loader gave.
        images: How many images they had.
    """

    def __init__(self, phase: str) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.times: Counter[str] = Counter()
        self.batches = self.images = 0
        self._phase = self._now = phase
        self._depth = 0
        self._since = time.perf_counter()

    @property
    def phase(self) -> str:
        """What the time is counted for that belongs to no stretch."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = phase
        if not self._depth:
            self._switch(phase)

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Count the time in the block for a stretch."""
        self.begin(what)
        try:
            yield
        finally:
            self.end()

    def begin(self, what: str) -> None:
        """Begin a stretch, to be ended by `end()` whatever happens."""
        self._depth += 1
        if self._depth == 1:
            self.times[what] += 1
            self._switch(what)

    def end(self) -> None:
        """End the stretch that was begun last."""
        self._depth -= 1
        if not self._depth:
            self._switch(self._phase)

    def stop(self) -> None:
        """Count the time up to now."""
        self._switch(self._now)

    def _switch(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[self._now] += now - self._since
        self._now, self._since = what, now


STOPWATCH = StashKey[Stopwatch]()


def timed(run: Run, what: str) -> AbstractContextManager[None]:
    """Return a context whose time counts as a stretch, in a run whose time is counted, while it is in an epoch."""
    if STOPWATCH not in run.stash or run.stash[STOPWATCH].phase != STEPS:
        return nullcontext()
    return run.stash[STOPWATCH].during(what)


def timed_batches(run: Run, loader: Any) -> Iterator[Any]:
    """Return an iterator over a training loader's batches, made at once, that counts how long they are waited for.

    Args:
        run: The run, whose time may be counted or not.
        loader: Any iterable.
    """
    if STOPWATCH not in run.stash:
        return iter(loader)
    watch = run.stash[STOPWATCH]
    with watch.during(FIRST_DATA):
        batches = iter(loader)
    return _TimedBatches(watch, batches)


class _TimedBatches:
    def __init__(self, watch: Stopwatch, batches: Iterator[Any]) -> None:
        self._watch = watch
        self._batches = batches
        self._what = FIRST_DATA

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._watch.begin(self._what)
        try:
            batch = next(self._batches)
        finally:
            self._watch.end()
        self._what = DATA
        self._watch.batches += 1
        images = batch.get("img") if isinstance(batch, dict) else None
        self._watch.images += len(images) if isinstance(images, torch.Tensor) else 0
        return batch
