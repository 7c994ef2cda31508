"""The synthetic data set that a measurement trains on."""

from __future__ import annotations

from pathlib import Path

from .. import synthetic
from .model import Model

__all__ = ["write_data"]

MIN_IMAGES = 128
"""Few enough to cache in the memory of every loader worker, enough for an epoch to take a second or more."""


def write_data(root: Path, model: Model, batch: int, imgsz: int) -> Path:
    """Write a synthetic data set for the model, whole batches only; return what Ultralytics takes as `data`."""
    return synthetic.write(
        model.task,
        root,
        images=max(-(-MIN_IMAGES // batch), 2) * batch,
        size=imgsz,
        val=3,  # the trainer requires validation images, one of each class for "classify"
        names=model.names,
        density=synthetic.MANY,
        keypoints=model.keypoints,
        suffix=".jpg",
    )
