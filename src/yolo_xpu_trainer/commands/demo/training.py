"""The demo's training run, with settings that train YOLO11n from random weights in minutes, also on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from ultralytics import YOLO

from yolo_xpu_trainer import XPUDetectionTrainer

SETTINGS = {
    # an untrained model needs many steps: small batches, and no accumulation of gradients
    "batch": 16,
    "nbs": 16,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "warmup_epochs": 1.0,
    "warmup_bias_lr": 0.0,  # the default of 0.1 is for SGD
    # mirrored digits are wrong, and a mosaic makes the digits too small
    "fliplr": 0.0,
    "mosaic": 0.0,
    "close_mosaic": 0,
    "scale": 0.2,
    # images this small load fast, and on Windows each worker imports PyTorch
    "workers": 2,
}


@dataclass(frozen=True)
class Trained:
    """Result of a training run.

    Attributes:
        weights: Path of the best checkpoint.
        directory: Ultralytics' directory with weights, plots and its log.
        map50: Mean average precision at an IoU of 0.5 on the held-out images, 0 to 1.
        map50_95: The same, averaged over IoUs from 0.5 to 0.95.
        device: The device it ran on.
    """

    weights: Path
    directory: Path
    map50: float
    map50_95: float
    device: torch.device


def train(
    description: Path, directory: Path, *, epochs: int, imgsz: int, seed: int, device: str | None = None
) -> Trained:
    """Train YOLO11n from random weights.

    Args:
        description: The data set's `data.yaml`.
        directory: The run's subdirectory `train` is made here.
        epochs: Passes over the training images.
        imgsz: Side of the images in pixels.
        seed: For the weights, the order of the images and their augmentation.
        device: For the trainer; None lets it choose.

    Returns:
        The result, with the scores of the best checkpoint.
    """
    options = dict(SETTINGS, data=str(description), epochs=epochs, imgsz=imgsz, seed=seed)
    if device is not None:
        options["device"] = device
    model = YOLO("yolo11n.yaml")
    metrics = model.train(trainer=XPUDetectionTrainer, project=str(directory), name="train", **options)
    trainer = model.trainer
    if metrics is None:  # several devices: the scores are in the worker processes
        metrics = YOLO(trainer.best).val(
            data=str(description), imgsz=imgsz, device=trainer.device, project=str(directory), name="val"
        )
    return Trained(
        weights=Path(trainer.best),
        directory=Path(trainer.save_dir),
        map50=float(metrics.box.map50),
        map50_95=float(metrics.box.map),
        device=trainer.device,
    )
