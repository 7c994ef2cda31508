"""Train Ultralytics YOLO models on Intel GPUs.

>>> from ultralytics import YOLO
>>> from yolo_xpu_trainer import XPUDetectionTrainer
>>> YOLO("yolo11n.yaml").train(trainer=XPUDetectionTrainer, data="coco8.yaml", epochs=1)  # doctest: +SKIP

Every public name is here: the trainers, the errors, and what a plugin is written with. They are imported on first use:
`import yolo_xpu_trainer` alone imports neither PyTorch nor Ultralytics. But it patches Ultralytics, now or as soon as
that is imported, as PyTorch's autoload of this package does in any process.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import _yolo_xpu_trainer_autoload

if TYPE_CHECKING:
    from .device_errors import DeviceLostError as DeviceLostError
    from .device_errors import NotEnoughMemoryError as NotEnoughMemoryError
    from .devices import DeviceInfo as DeviceInfo
    from .diagnosis import Diagnosis as Diagnosis
    from .diagnosis import DoctorCheck as DoctorCheck
    from .diagnosis import Machine as Machine
    from .diagnosis import Verdict as Verdict
    from .errors import CollectivesError as CollectivesError
    from .errors import DeviceError as DeviceError
    from .errors import DuplicateDeviceError as DuplicateDeviceError
    from .errors import NoSuchXPUError as NoSuchXPUError
    from .errors import NotSavedError as NotSavedError
    from .errors import NoXCCLError as NoXCCLError
    from .errors import NoXPUError as NoXPUError
    from .errors import OptionError as OptionError
    from .errors import OptionValueError as OptionValueError
    from .errors import RankError as RankError
    from .errors import RunFolderInUseError as RunFolderInUseError
    from .errors import RunUnderWayError as RunUnderWayError
    from .errors import UnknownDeviceError as UnknownDeviceError
    from .errors import UnknownOptionError as UnknownOptionError
    from .errors import UnknownTrainerError as UnknownTrainerError
    from .errors import UsageError as UsageError
    from .errors import WorkerError as WorkerError
    from .errors import WrongBuildError as WrongBuildError
    from .errors import WrongResultsError as WrongResultsError
    from .errors import XPUTrainerError as XPUTrainerError
    from .hookspecs import hookimpl as hookimpl
    from .numerics import Check as Check
    from .numerics import Finding as Finding
    from .numerics import Given as Given
    from .numerics import avoids as avoids
    from .numerics import compared as compared
    from .options import Option as Option
    from .options import Options as Options
    from .patches import Patch as Patch
    from .patches import patch as patch
    from .patches import stand_in as stand_in
    from .run import Precision as Precision
    from .run import Run as Run
    from .run import StashKey as StashKey
    from .trainers import XPUClassificationTrainer as XPUClassificationTrainer
    from .trainers import XPUDepthTrainer as XPUDepthTrainer
    from .trainers import XPUDetectionTrainer as XPUDetectionTrainer
    from .trainers import XPUOBBTrainer as XPUOBBTrainer
    from .trainers import XPUPoseTrainer as XPUPoseTrainer
    from .trainers import XPURTDETRTrainer as XPURTDETRTrainer
    from .trainers import XPUSegmentationTrainer as XPUSegmentationTrainer
    from .trainers import XPUSemanticSegmentationTrainer as XPUSemanticSegmentationTrainer
    from .trainers import XPUTrainer as XPUTrainer
    from .trainers import XPUWorldFromScratchTrainer as XPUWorldFromScratchTrainer
    from .trainers import XPUWorldTrainer as XPUWorldTrainer
    from .trainers import XPUYOLOEFromScratchTrainer as XPUYOLOEFromScratchTrainer
    from .trainers import XPUYOLOEPEFreeTrainer as XPUYOLOEPEFreeTrainer
    from .trainers import XPUYOLOEPESegTrainer as XPUYOLOEPESegTrainer
    from .trainers import XPUYOLOEPETrainer as XPUYOLOEPETrainer
    from .trainers import XPUYOLOESegFromScratchTrainer as XPUYOLOESegFromScratchTrainer
    from .trainers import XPUYOLOESegTrainer as XPUYOLOESegTrainer
    from .trainers import XPUYOLOESegVPTrainer as XPUYOLOESegVPTrainer
    from .trainers import XPUYOLOETrainer as XPUYOLOETrainer
    from .trainers import XPUYOLOEVPTrainer as XPUYOLOEVPTrainer

_PUBLIC = {
    "device_errors": ("DeviceLostError", "NotEnoughMemoryError"),
    "devices": ("DeviceInfo",),
    "diagnosis": ("Diagnosis", "DoctorCheck", "Machine", "Verdict"),
    "errors": (
        "CollectivesError",
        "DeviceError",
        "DuplicateDeviceError",
        "NoSuchXPUError",
        "NoXCCLError",
        "NoXPUError",
        "NotSavedError",
        "OptionError",
        "OptionValueError",
        "RankError",
        "RunFolderInUseError",
        "RunUnderWayError",
        "UnknownDeviceError",
        "UnknownOptionError",
        "UnknownTrainerError",
        "UsageError",
        "WorkerError",
        "WrongBuildError",
        "WrongResultsError",
        "XPUTrainerError",
    ),
    "hookspecs": ("hookimpl",),
    "numerics": ("Check", "Finding", "Given", "avoids", "compared"),
    "options": ("Option", "Options"),
    "patches": ("Patch", "patch", "stand_in"),
    "run": ("Precision", "Run", "StashKey"),
    "trainers": (
        "XPUClassificationTrainer",
        "XPUDepthTrainer",
        "XPUDetectionTrainer",
        "XPUOBBTrainer",
        "XPUPoseTrainer",
        "XPURTDETRTrainer",
        "XPUSegmentationTrainer",
        "XPUSemanticSegmentationTrainer",
        "XPUTrainer",
        "XPUWorldFromScratchTrainer",
        "XPUWorldTrainer",
        "XPUYOLOEFromScratchTrainer",
        "XPUYOLOEPEFreeTrainer",
        "XPUYOLOEPESegTrainer",
        "XPUYOLOEPETrainer",
        "XPUYOLOESegFromScratchTrainer",
        "XPUYOLOESegTrainer",
        "XPUYOLOESegVPTrainer",
        "XPUYOLOETrainer",
        "XPUYOLOEVPTrainer",
    ),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_HOMES]

if not TYPE_CHECKING:  # a misspelt name is an error to a type checker

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("yolo-xpu-trainer")
            except PackageNotFoundError:  # in a frozen program
                return "unknown"
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)

else:
    __version__: str


def __dir__() -> list[str]:
    return sorted(__all__)


_yolo_xpu_trainer_autoload.act_on_import()
