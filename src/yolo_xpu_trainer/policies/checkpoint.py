"""A checkpoint is an Ultralytics checkpoint: it loads, resumes and validates where this package isn't installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..patches import Patch, applied, like, stand_in
from ..run import CHECKPOINT_KEY, Run

__all__: list[str] = []


def _remembering(trainer: Any) -> Patch:
    @stand_in(
        "ultralytics.engine.trainer:torch",
        why="what the run decided would be lost on resume",
        source="ultralytics/engine/trainer.py, save_model: the checkpoint's keys are fixed there",
        everywhere=False,
    )
    def torch_that_remembers(run: Run, original: Any) -> Any:
        """Return a stand-in for the module `torch` whose `save` adds to a checkpoint what is to be remembered."""

        def save(obj: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(obj, dict) and "train_args" in obj:
                own: Run = trainer.xpu
                obj = {**obj, CHECKPOINT_KEY: own.settings()}
                for state in own.hooks.xpu_checkpoint(trainer=trainer):
                    obj[CHECKPOINT_KEY].update(state)
                if isinstance(averaged := obj.get("ema"), torch.nn.Module):  # before 8.4.140 as the run had it
                    averaged.to(memory_format=torch.contiguous_format)
            return original.save(obj, *args, **kwargs)

        return like(original, save=save)

    return torch_that_remembers


@hookimpl
@contextmanager
def xpu_around_save(trainer: Any) -> Iterator[None]:
    """Write the device as None, and what was decided under a key of its own.

    Ultralytics refuses to resume a `device='xpu:0'` where there is no XPU: "Invalid XPU" (8.4.190), "Invalid CUDA
    'device=xpu:0'" (8.3.0).
    """
    run: Run = trainer.xpu
    device, trainer.args.device = trainer.args.device, None
    try:
        with applied([_remembering(trainer)], run):
            yield
    finally:
        trainer.args.device = device
