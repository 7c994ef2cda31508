"""The model to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ultralytics import YOLO

from ...errors import UsageError
from ...upstream.model import trainers_for
from ..synthetic import TASKS
from .isolation import first_line, plain_ultralytics, quiet

__all__ = ["Model", "load"]


@dataclass(frozen=True)
class Model:
    """The model to measure.

    Attributes:
        file: As `YOLO` takes it.
        task: As Ultralytics calls it.
        names: Names for the classes of its data set.
        keypoints: Points of an object and values of a point, for the task "pose".
        plain: Ultralytics' own trainer for it.
        ours: This package's trainer, None if it has none.
    """

    file: str
    task: str
    names: list[str]
    keypoints: tuple[int, int]
    plain: type[Any]
    ours: type[Any] | None


def load(file: str) -> Model:
    """Find out what training a model takes.

    Raises:
        UsageError: There is no such model, or there is no synthetic data for its task.
    """
    try:
        with plain_ultralytics(), quiet():
            model = YOLO(file)
            trainer = model._smart_load("trainer")
    except Exception as error:  # Ultralytics raises many types
        raise UsageError(
            f"can't load --model {file!r} ({first_line(error)}). Choose an architecture of Ultralytics, such as "
            "yolo11n.yaml, or a .yaml or .pt file of your own."
        ) from error
    if model.task not in TASKS:
        raise UsageError(
            f"can't measure --model {file!r}: there is no synthetic data for its task, {model.task!r}. "
            f"Choose a model for one of {', '.join(TASKS)}."
        )
    points, values = getattr(model.model, "kpt_shape", None) or model.model.yaml.get("kpt_shape") or (17, 3)
    names = [str(number) for number in range(max(len(model.names), 2))]
    return Model(file, model.task, names, (int(points), int(values)), trainer, trainers_for(trainer).get("xpu"))
