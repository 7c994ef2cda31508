"""Train Ultralytics YOLO models on Intel GPUs.

>>> from ultralytics import YOLO
>>> from yolo_xpu_trainer import XPUDetectionTrainer
>>> YOLO("yolo11n.yaml").train(trainer=XPUDetectionTrainer, data="coco8.yaml", epochs=1)  # doctest: +SKIP

The public names are imported on first use: `import yolo_xpu_trainer` alone imports neither PyTorch nor Ultralytics. But
it acts in Ultralytics, now or as soon as that is imported, as PyTorch's autoload of this package does in any process.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import _yolo_xpu_trainer_autoload

if TYPE_CHECKING:
    from .hookspecs import hookimpl
    from .options import Options
    from .trainers import XPUTrainer

__all__ = ["Options", "XPUTrainer", "__version__", "hookimpl"]  # and every name in `trainers.TRAINERS`

_HOMES = {"Options": "options", "XPUTrainer": "trainers", "hookimpl": "hookspecs"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("yolo-xpu-trainer")
    if name.startswith("XPU") and name.endswith("Trainer"):
        return getattr(importlib.import_module(".trainers", __name__), name)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_yolo_xpu_trainer_autoload.act_on_import()


def __dir__() -> list[str]:
    from .trainers import TRAINERS

    return sorted([*__all__, *TRAINERS])
