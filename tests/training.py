"""Train a tiny model, with this package or with plain Ultralytics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

SMALL: dict[str, Any] = {"epochs": 1, "imgsz": 32, "batch": 4, "workers": 0, "plots": False}

_NAMES = {"segment": ("-seg", "Segmentation"), "classify": ("-cls", "Classification"), "obb": ("-obb", "OBB")}


def model_of(task: str) -> str:
    """Return the smallest YOLO11 of a task."""
    return f"yolo11n{_NAMES.get(task, ('-pose' if task == 'pose' else '',))[0]}.yaml"


def trainer_of(task: str, plain: bool = False) -> type:
    """Return this package's trainer of a task, or Ultralytics' own."""
    from ultralytics.models import yolo

    from yolo_xpu_trainer import trainers

    name = {"detect": "Detection", "pose": "Pose"}.get(task) or _NAMES[task][1]
    return getattr(getattr(yolo, task), f"{name}Trainer") if plain else getattr(trainers, f"XPU{name}Trainer")


@contextmanager
def plain_ultralytics() -> Iterator[None]:
    """Take back everything that this package changes in Ultralytics."""
    import ultralytics  # noqa: F401 - the first import of it activates

    from yolo_xpu_trainer.activation import process_patches

    process_patches().restore()
    try:
        yield
    finally:
        process_patches().apply()


def train(
    data: str,
    task: str = "detect",
    *,
    model: Any = None,
    plain: bool = False,
    callbacks: Mapping[str, Callable[[Any], None]] | None = None,
    **arguments: Any,
) -> Any:
    """Train a tiny model for an epoch.

    Args:
        data: The data set.
        task: Chooses the model and the trainer where neither is given.
        model: A `YOLO`, or what it is made from.
        plain: Train with Ultralytics' own trainer, without anything that this package changes.
        callbacks: What to call, by event.
        arguments: Arguments of `train()`, before those of `SMALL`.

    Returns:
        The trainer.
    """
    from ultralytics import YOLO

    with plain_ultralytics() if plain else nullcontext():
        yolo = model if isinstance(model, YOLO) else YOLO(model or model_of(task))
        for event, callback in (callbacks or {}).items():
            yolo.add_callback(event, callback)
        yolo.train(**{"trainer": trainer_of(task, plain), "data": data, **SMALL, **arguments})
    return yolo.trainer
