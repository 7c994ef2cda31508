"""The demo's training run: settings that take an untrained YOLO11n to digits within minutes, on a CPU too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from ultralytics import YOLO

from yolo_xpu_trainer import XPUDetectionTrainer

SETTINGS = {
    # many small steps: an untrained model needs steps before all else, so none is spent on accumulating gradients
    "batch": 16,
    "nbs": 16,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "warmup_epochs": 1.0,
    "warmup_bias_lr": 0.0,  # the default of 0.1 is made for SGD
    # a mirrored digit is none, and a mosaic makes digits of this size too small
    "fliplr": 0.0,
    "mosaic": 0.0,
    "close_mosaic": 0,
    "scale": 0.2,
    # images this small are read faster than trained on, and on Windows each further worker imports PyTorch once more
    "workers": 2,
}


@dataclass(frozen=True)
class Trained:
    """Outcome of a training run.

    Attributes:
        weights: Path of the best checkpoint.
        directory: Where Ultralytics put weights, plots and its log.
        map50: Mean average precision at an IoU of 0.5 on the held-out images, 0 to 1.
        map50_95: The same, as the mean over IoUs from 0.5 to 0.95.
        device: What it ran on.
        imgsz: Side of the images in pixels.
    """

    weights: Path
    directory: Path
    map50: float
    map50_95: float
    device: torch.device
    imgsz: int


def train(
    description: Path, directory: Path, *, epochs: int, imgsz: int, seed: int, device: str | None = None
) -> Trained:
    """Train YOLO11n from its architecture file, hence from random weights.

    Args:
        description: The data set's `data.yaml`.
        directory: Where to put the run, as the sub-directory `train`.
        epochs: Passes over the training images.
        imgsz: Side of the images in pixels.
        seed: For the weights, the order of the images and their augmentation.
        device: Passed on to the trainer; None leaves it the choice.

    Returns:
        What came out, with the scores of the best checkpoint.
    """
    options = dict(SETTINGS, data=str(description), epochs=epochs, imgsz=imgsz, seed=seed)
    if device is not None:
        options["device"] = device
    model = YOLO("yolo11n.yaml")
    metrics = model.train(trainer=XPUDetectionTrainer, project=str(directory), name="train", **options)
    trainer = model.trainer
    if metrics is None:  # several devices: the scores stayed in the worker processes
        metrics = YOLO(trainer.best).val(
            data=str(description), imgsz=imgsz, device=trainer.device, project=str(directory), name="val"
        )
    return Trained(
        weights=Path(trainer.best),
        directory=Path(trainer.save_dir),
        map50=float(metrics.box.map50),
        map50_95=float(metrics.box.map),
        device=trainer.device,
        imgsz=imgsz,
    )
