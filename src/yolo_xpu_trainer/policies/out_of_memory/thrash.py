"""Memory that only suffices because the allocator empties its cache again and again has the batch halved, once.

Each time it waits for the device and gives all cached memory back to the driver, which the XPU's allocator counts as
CUDA's does (`alloc_block` in `c10/xpu/XPUCachingAllocator.cpp`). Model: Composer's automatic microbatching, which
reacts to `num_alloc_retries` likewise.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from ...run import StashKey
from .halving import AGAIN, TRIES
from .step import PENDING

__all__ = ["Thrash", "watch"]

_BATCHES = 10  # between two looks
_MOST = 8  # of them; Ultralytics itself empties the cache after an epoch
_LOOKS = 2  # in a row, so that a rare large batch doesn't halve all


class Thrash:
    """How often a run's allocator emptied its cache to make room.

    Args:
        retries: How often it had done so before the run.

    Attributes:
        acted: Whether the batch was halved, which is tried once.
    """

    def __init__(self, retries: int) -> None:
        self.acted = False
        self._batches = 0
        self._retries = retries
        self._in_a_row = 0

    def count(self, retries: int) -> bool:
        """Note a batch, and say whether the allocator has thrashed in the last ones.

        Args:
            retries: How often the allocator emptied its cache since the process began.
        """
        more = retries - self._retries
        self._retries = retries
        self._in_a_row = self._in_a_row + 1 if more >= _MOST else 0
        return self._in_a_row >= _LOOKS

    def is_time_to_look(self) -> bool:
        """Note a batch, and say whether to look."""
        self._batches += 1
        return not self.acted and self._batches % _BATCHES == 0


def _retries(index: int) -> int:
    statistics = getattr(torch.xpu, "memory_stats", None)  # as the other figures, not in every release
    return int(statistics(index).get("num_alloc_retries", 0)) if statistics else 0


def _can_be_halved(trainer: Any) -> bool:
    """Whether a forward that runs out of memory halves the batch, rather than ends the run."""
    if trainer.batch_size < 2 or os.environ.get("RANK", "-1") != "-1" or trainer.xpu.world_size > 1:
        return False
    again = trainer.xpu.stash.get(AGAIN, None)
    if again is not None and not again.may_be_tried(trainer.epoch):
        return False
    return int(getattr(trainer, "_oom_retries", 0)) < TRIES


_THRASH = StashKey[Thrash]()


def watch(trainer: Any) -> None:
    """Look at the allocator every so many batches."""
    run = trainer.xpu
    if _THRASH not in run.stash:
        run.stash[_THRASH] = Thrash(_retries(run.device.index))
    thrash = run.stash[_THRASH]
    if not thrash.is_time_to_look():
        return
    retries = _retries(run.device.index)
    if thrash.count(retries) and _can_be_halved(trainer):
        thrash.acted = True
        run.stash[PENDING] = (
            f"XPU out of memory but for emptying the allocator's cache, {retries} times by now and in each of the "
            "last steps, which costs more than a smaller batch"
        )
