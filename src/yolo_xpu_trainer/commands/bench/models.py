"""The model to measure, and what a data set for it has to be like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ultralytics import YOLO

from ...errors import UsageError
from ...upstream.model import trainers_for
from .data import TASKS
from .isolation import as_plain, first_line, quiet

__all__ = ["Subject", "load"]


@dataclass(frozen=True)
class Subject:
    """The model to measure.

    Attributes:
        file: As `YOLO` takes it.
        task: As Ultralytics names it.
        classes: How many it tells apart.
        keypoints: Points of an object and values of a point, for the task "pose".
        plain: Ultralytics' own trainer for it.
        ours: This package's, None where it has none.
    """

    file: str
    task: str
    classes: int
    keypoints: tuple[int, int]
    plain: type[Any]
    ours: type[Any] | None


def load(file: str) -> Subject:
    """Look at a model.

    Raises:
        UsageError: There is no such model, or no data can be made for its task.
    """
    try:
        with as_plain(), quiet():
            model = YOLO(file)
            plain = model._smart_load("trainer")
    except Exception as error:  # Ultralytics has no type of its own for what is wrong with a file
        raise UsageError(
            f"--model {file!r} can't be loaded ({first_line(error)}). Name an architecture that Ultralytics has, such "
            "as yolo11n.yaml, or a .yaml or .pt of your own."
        ) from error
    if model.task not in TASKS:
        raise UsageError(
            f"--model {file!r} is for the task {model.task!r}, for which the bench can't make data. "
            f"Name a model for one of {', '.join(TASKS)}."
        )
    points = getattr(model.model, "kpt_shape", None) or model.model.yaml.get("kpt_shape") or (17, 3)
    return Subject(
        file=file,
        task=model.task,
        classes=max(len(model.names), 2),
        keypoints=(int(points[0]), int(points[1])),
        plain=plain,
        ours=trainers_for(plain).get("xpu"),
    )
