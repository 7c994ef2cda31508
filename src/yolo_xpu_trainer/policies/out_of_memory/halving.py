"""Ultralytics before 8.4.20 ends a run whose memory runs out; here it goes on with half the batch, as later ones do."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from ...patches import patch
from ...run import Run, StashKey
from .texts import first_line

__all__ = ["IN_TRAINING", "do_train"]

_LOGGER = logging.getLogger("ultralytics")
_TRIES = 3  # in an epoch, as Ultralytics has it

IN_TRAINING = StashKey[bool]()
"""Whether the memory that ran out did so in a forward or a backward of training."""


def _ends_the_run(original: Any) -> bool:
    from ultralytics.engine.trainer import BaseTrainer

    return not hasattr(BaseTrainer, "_build_train_pipeline")


@patch(
    "ultralytics.engine.trainer:BaseTrainer._do_train",
    why="memory that runs out ends the run",
    source="ultralytics/engine/trainer.py, _do_train: since 8.4.20 or so it halves the batch",
    needed=_ends_the_run,
)
def do_train(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Train; where memory runs out, go on in the same epoch with half the batch and all that was learnt."""
    tries: dict[int, int] = {}
    try:
        while True:
            try:
                return original(self, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                if not run.stash.get(IN_TRAINING, False) or len(run.indices) > 1 or self.batch_size < 2:
                    raise
                tries[self.epoch] = tries.get(self.epoch, 0) + 1
                if tries[self.epoch] > _TRIES:
                    raise
                seen = first_line(error)
            run.stash[IN_TRAINING] = False
            before, self.args.batch = self.batch_size, self.batch_size // 2
            self.batch_size = self.args.batch
            _LOGGER.warning(
                f"XPU out of memory with batch={before} ({seen}). Reducing to batch={self.batch_size} and retrying "
                f"({tries[self.epoch]}/{_TRIES})."
            )
            _start_again(self)
    finally:
        for name in ("_setup_train", "run_callbacks"):
            vars(self).pop(name, None)


def _start_again(trainer: Any) -> None:
    """Let the training loop begin with the epoch at hand, with loaders for the batch, and nothing else set up anew."""
    trainer.loss = trainer.loss_items = trainer.tloss = None
    trainer.optimizer.zero_grad()
    trainer._clear_memory()
    trainer.train_loader = trainer.get_dataloader(
        _data(trainer, "train"),
        batch_size=trainer.batch_size,
        rank=int(os.environ.get("LOCAL_RANK", -1)),
        mode="train",
    )
    of_validation = trainer.batch_size * (1 if trainer.args.task == "obb" else 2)
    trainer.test_loader = trainer.get_dataloader(_data(trainer, "val"), batch_size=of_validation, rank=-1, mode="val")
    trainer.validator.dataloader = trainer.test_loader
    trainer.accumulate = max(round(trainer.args.nbs / trainer.batch_size), 1)
    trainer.start_epoch = trainer.epoch
    trainer.scheduler.last_epoch = trainer.start_epoch - 1
    trainer._setup_train = lambda *args, **kwargs: None
    trainer.run_callbacks = functools.partial(_but_for_the_start, type(trainer).run_callbacks, trainer)


def _data(trainer: Any, split: str) -> Any:
    """Return what Ultralytics makes a loader of, for training or for validation."""
    of_trainer = getattr(trainer, "trainset" if split == "train" else "testset", None)  # before 8.3.100 or so
    return of_trainer or trainer.data.get(split) or trainer.data.get("test")


def _but_for_the_start(run_callbacks: Callable[..., Any], trainer: Any, event: str, *args: Any) -> Any:
    return None if event == "on_train_start" else run_callbacks(trainer, event, *args)
