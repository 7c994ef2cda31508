"""A run that is supervised says that it is alive, and what it can go on from: see `yolo-xpu train`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from ..files import HEARTBEAT_VARIABLE
from ..hookspecs import hookimpl
from ..run import StashKey, checkpoint_of

__all__: list[str] = []

_SECONDS = 0.5  # between two beats
_EVENTS = (
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_val_start",
    "on_val_batch_end",
    "on_val_end",
    "on_fit_epoch_end",
)
_BEAT = StashKey[float]()


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Beat with every batch, of training and of validation, if somebody listens."""
    if os.environ.get(HEARTBEAT_VARIABLE) and os.environ.get("RANK", "-1") in ("-1", "0"):
        for event in _EVENTS:
            trainer.add_callback(event, lambda caller: _beat(trainer))
        for event in ("on_train_start", "on_model_save"):
            trainer.add_callback(event, lambda caller: _beat(trainer, now=True))


def _beat(trainer: Any, now: bool = False) -> None:
    last = trainer.xpu.stash.get(_BEAT, 0.0)
    if not now and time.monotonic() - last < _SECONDS:
        return
    trainer.xpu.stash[_BEAT] = time.monotonic()
    epoch = getattr(trainer, "epoch", 0) + 1  # there is none before the first
    said = {
        "checkpoint": str(checkpoint_of(trainer) or ""),
        "device": trainer.xpu.device_string,
        "epoch": epoch,
        "epochs": trainer.epochs,
        "batch": trainer.batch_size,
    }
    there = os.environ[HEARTBEAT_VARIABLE]
    with contextlib.suppress(OSError):  # renamed, because this process may end at any moment
        Path(f"{there}.new").write_text(json.dumps(said), encoding="utf-8")
        os.replace(f"{there}.new", there)
