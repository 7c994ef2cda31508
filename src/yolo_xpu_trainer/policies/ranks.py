"""Several processes, on one machine or more: what becomes of one, the others know in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from .. import elastic
from ..hookspecs import hookimpl
from ..options import Option
from ..patches import Patch, patch
from ..ranks import GLOO, RANK_TIMEOUT
from ..run import Run

__all__: list[str] = []

_EVENTS = (
    "on_train_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_val_start",
    "on_val_batch_end",
    "on_val_end",
    "on_fit_epoch_end",
    "on_model_save",
)


@hookimpl
def xpu_options() -> list[Option[Any]]:
    return [RANK_TIMEOUT, GLOO]


@hookimpl
def xpu_report(trainer: Any) -> str | None:
    """Say where gradients go round by the host."""
    run: Run = trainer.xpu
    return "gradients by way of the host (gloo)" if run.world_size > 1 and run.options[GLOO] else None


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Let the others know how far this process is."""
    run: Run = trainer.xpu
    if run.watchdog is not None:
        for event in _EVENTS:
            trainer.add_callback(event, lambda caller: run.watchdog.step())


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Note whose the folder is until the run has come to its end, so that processes that are started again find it."""
    run: Run = trainer.xpu
    if run.group is None or (run.group.launch.rank and run.group.launch.local_rank):
        yield
        return
    folder = Path(trainer.save_dir)
    elastic.leave_note(folder, run.group.launch)
    yield
    elastic.remove_note(folder)


@hookimpl(tryfirst=True)
def xpu_around_save(trainer: Any) -> AbstractContextManager[None]:
    """Let a process that is ended for another one's sake finish its checkpoint."""
    watchdog = trainer.xpu.watchdog
    return nullcontext() if watchdog is None else watchdog.saving()


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    run: Run = trainer.xpu
    if run.group is None:
        return []
    return [final_eval, handle_nan_recovery] if run.group.machines > 1 else [final_eval]


def _evaluates_together(original: Any) -> bool:
    """Whether all ranks take part in the final evaluation, as since 8.3.220 or so; before, rank 0 is alone there."""
    from ultralytics.engine.validator import BaseValidator

    return hasattr(BaseValidator, "gather_stats")


@patch(
    "ultralytics.engine.trainer:BaseTrainer.final_eval",
    why="each rank looks for best.pt on its own machine, so that those without it leave the others waiting",
    needed=_evaluates_together,
)
def final_eval(run: Run, original: Callable[..., Any], self: Any) -> Any:
    """Evaluate where rank 0 has a checkpoint, which every machine gets; nowhere else."""
    best = self.best
    if not run.group.share(Path(best)) and Path(best).exists():  # of another run, on this machine
        self.best = Path(best).with_name("none.pt")
    try:
        return original(self)
    finally:
        self.best = best


@patch(
    "ultralytics.engine.trainer:BaseTrainer._handle_nan_recovery",
    why="each rank looks for last.pt on its own machine",
    optional=True,
)
def handle_nan_recovery(run: Run, original: Callable[..., Any], self: Any, epoch: int) -> Any:
    """Give every machine the checkpoint before all ranks go back to it."""
    values = [] if run.group.launch.rank else [self.loss, self.fitness]
    finite = all(value is None or math.isfinite(float(torch.as_tensor(value).detach().sum())) for value in values)
    if not run.group.agree(finite):
        run.group.share(Path(self.last))
    return original(self, epoch)
