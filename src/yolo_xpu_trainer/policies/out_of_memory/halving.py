"""Ultralytics before 8.4.20 ends a run whose memory runs out; here it goes on with half the batch, as later ones do."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...patches import patch
from ...run import Run, StashKey
from .texts import first_line

__all__ = ["AGAIN", "IN_TRAINING", "TRIES", "build_train_pipeline", "close_late_mosaic", "do_train"]

_LOGGER = logging.getLogger("ultralytics")
TRIES = 3  # in an epoch, as Ultralytics has it

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
    again = run.stash[AGAIN] = Again()
    try:
        while True:
            try:
                return original(self, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                if not run.stash.get(IN_TRAINING, False) or run.world_size > 1 or self.batch_size < 2:
                    raise
                if not again.may_be_tried(self.epoch):
                    raise
                again.tries[self.epoch] += 1
                seen = first_line(error)
            run.stash[IN_TRAINING] = False
            before, self.args.batch = self.batch_size, self.batch_size // 2
            self.batch_size = self.args.batch
            _LOGGER.warning(
                f"XPU out of memory with batch={before} ({seen}). Reducing to batch={self.batch_size} and retrying "
                f"({again.tries[self.epoch]}/{TRIES})."
            )
            again.start(self)
    finally:
        again.end(self)


do_train = replace(do_train, policy="")  # an error in the middle of a training mustn't begin it anew


class Again:
    """How often, in each epoch, a training went on with half the batch, and what it does differently then.

    Attributes:
        tries: How often, by epoch.
    """

    def __init__(self) -> None:
        self.tries: Counter[int] = Counter()
        self._own: dict[str, Any] = {}
        self._begun: tuple[float, int] | None = None

    def may_be_tried(self, epoch: int) -> bool:
        """Whether the batch may be halved once more in an epoch."""
        return self.tries[epoch] < TRIES

    def start(self, trainer: Any) -> None:
        """Let the training loop begin with the epoch at hand, with loaders for the batch, and nothing else anew."""
        self.end(trainer)
        if self._begun is None:
            self._begun = trainer.train_time_start, trainer.start_epoch
        _rebuild(trainer)
        trainer.start_epoch = trainer.epoch
        trainer.scheduler.last_epoch = trainer.start_epoch - 1
        run_callbacks = trainer.run_callbacks

        def but_for_the_start(event: str, *args: Any) -> Any:
            if event == "on_train_start":
                return None
            if event == "on_train_epoch_start" and self._begun is not None:
                # The loop has read them by now; a time limit counts from the true beginning.
                trainer.train_time_start, trainer.start_epoch = self._begun
            return run_callbacks(event, *args)

        self._own = {"_setup_train": lambda *args, **kwargs: None, "run_callbacks": but_for_the_start}
        vars(trainer).update(self._own)

    def end(self, trainer: Any) -> None:
        """Give a trainer its own methods back."""
        for name, method in self._own.items():
            if vars(trainer).get(name) is method:
                del vars(trainer)[name]
        self._own = {}


AGAIN = StashKey[Again]()


def close_late_mosaic(trainer: Any) -> None:
    """Close a new loader's mosaic in the last epochs; an older Ultralytics does so in the first of them only."""
    epoch = vars(trainer).get("epoch")  # there is none before the first
    if epoch is not None and trainer.args.close_mosaic and epoch > trainer.epochs - trainer.args.close_mosaic:
        trainer._close_dataloader_mosaic()
        if hasattr(trainer.train_loader, "reset"):
            trainer.train_loader.reset()


@patch(
    "ultralytics.engine.trainer:BaseTrainer._build_train_pipeline",
    why="where memory runs out in the last epochs, the rest of them would be trained with mosaic",
    optional=True,  # of a version that halves the batch
)
def build_train_pipeline(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Make loaders, an optimizer and so on."""
    result = original(self, *args, **kwargs)
    close_late_mosaic(self)
    return result


def _rebuild(trainer: Any) -> None:
    """Make loaders for a trainer's batch."""
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
    close_late_mosaic(trainer)


def _data(trainer: Any, split: str) -> Any:
    """Return what Ultralytics makes a loader of, for training or for validation."""
    of_trainer = getattr(trainer, "trainset" if split == "train" else "testset", None)  # before 8.3.100 or so
    return of_trainer or trainer.data.get(split) or trainer.data.get("test")
