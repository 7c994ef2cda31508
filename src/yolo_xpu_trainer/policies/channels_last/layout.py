"""The memory format that a run has at the moment."""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakSet

import torch

from ...own_code import unwrapped
from ...run import Run, StashKey
from .weights import follow_the_weights, lay_out

__all__ = ["LAYOUT", "Layout", "go_without", "of", "train_in", "train_in_nchw"]

_LOGGER = logging.getLogger("ultralytics")


class Layout:
    """The memory format of a run.

    Args:
        wanted: Whether it is to be channels_last.

    Attributes:
        wanted: The same; False, too, once the run went back to NCHW.
        model: The model that is laid out in it, None as long as its own code is yet to be tried.
        tried: What of users' code was tried, by id.
        optimizers: Those that were tried.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.model: torch.nn.Module | None = None
        self.tried: dict[int, Any] = {}
        self.optimizers: WeakSet[torch.optim.Optimizer] = WeakSet()


LAYOUT = StashKey[Layout]()


def of(trainer: Any) -> Layout:
    run: Run = trainer.xpu
    return run.stash[LAYOUT]


def train_in(memory_format: torch.memory_format, trainer: Any) -> None:
    """Lay out what a run has: its model, its average, and the optimizer's state."""
    layout = of(trainer)
    layout.wanted = memory_format is torch.channels_last
    layout.model = unwrapped(trainer.model) if layout.wanted else None
    average: Any = getattr(trainer, "ema", None)
    for model in (trainer.model, getattr(average, "ema", None)):
        if isinstance(model, torch.nn.Module):
            lay_out(model, memory_format)
    if getattr(average, "_pairs", None) is not None:
        average._pairs = None  # the weights' storage as it was
    optimizer = getattr(trainer, "optimizer", None)  # before 8.4.111 or so there is none before it is built
    if isinstance(optimizer, torch.optim.Optimizer):
        follow_the_weights(optimizer)


def go_without(trainer: Any) -> None:
    """Go back to NCHW where this policy failed."""
    if of(trainer).wanted:
        train_in(torch.contiguous_format, trainer)


def train_in_nchw(trainer: Any, reason: str) -> None:
    _LOGGER.warning(f"XPU: training in NCHW, which is slower, because {reason}")
    train_in(torch.contiguous_format, trainer)
