"""What is trained: every task's small model, in two precisions, with the optimizers that Ultralytics chooses."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

__all__ = ["CASES", "PRECISIONS", "Case"]

PRECISIONS = ("bf16", "fp32")

_TASKS = {"": "detect", "-seg": "segment", "-pose": "pose", "-obb": "obb", "-cls": "classify"}
_TRAINERS = {
    "detect": "DetectionTrainer",
    "segment": "SegmentationTrainer",
    "pose": "PoseTrainer",
    "obb": "OBBTrainer",
    "classify": "ClassificationTrainer",
}


@dataclass(frozen=True)
class Case:
    """A model, an optimizer and a precision.

    Attributes:
        model: The model's name, such as "yolo11n-seg".
        optimizer: "AdamW" or "MuSGD".
        precision: "bf16", which is plain Ultralytics' fp16, or "fp32".
    """

    model: str
    optimizer: str
    precision: str

    @property
    def task(self) -> str:
        """The model's task, which its name ends with."""
        return _TASKS[self.model.removeprefix("yolo11n").removeprefix("yolo26n")]

    @property
    def plain(self) -> type:
        """Ultralytics' own trainer."""
        found: type = getattr(importlib.import_module(f"ultralytics.models.yolo.{self.task}"), _TRAINERS[self.task])
        return found

    @property
    def ours(self) -> type:
        """The trainer of this package."""
        found: type = getattr(importlib.import_module("yolo_xpu_trainer.trainers"), f"XPU{_TRAINERS[self.task]}")
        return found

    def __str__(self) -> str:
        return f"{self.model} {self.optimizer} {self.precision}"


CASES = [
    Case(model, optimizer, precision)
    for precision in PRECISIONS
    for model in ("yolo11n", "yolo26n", "yolo11n-seg", "yolo26n-seg", "yolo11n-pose", "yolo11n-obb", "yolo11n-cls")
    for optimizer in ("AdamW", "MuSGD")
]
