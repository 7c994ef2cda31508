"""Trainings of a few steps, each with one configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..measurement.cases import Case
from ..measurement.isolation import first_line, quiet, with_package
from ..measurement.timing import Job, NotMeasured, Stop, train
from .search import Budget, Entry

__all__ = ["Sizes", "measurer", "with_users_data"]

_ALWAYS = {
    "xpu_tuned": False,
    "xpu_log_every": 3600.0,  # how often losses are read is a matter of the clock, and of no switch
}

# What Ultralytics does to images by default, and a measurement on synthetic ones leaves out.
_AUGMENTATIONS = (
    *("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "erasing"),
    *("close_mosaic", "auto_augment", "cache"),
)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a measurement.

    Attributes:
        imgsz: Side of the images in pixels.
        batch: Images per step.
        steps: Steps in a window, at most.
    """

    imgsz: int
    batch: int
    steps: int


def with_users_data() -> Mapping[str, Any]:
    """Return the arguments with which a user's own images are loaded and augmented as in any training."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    return {name: DEFAULT_CFG_DICT[name] for name in _AUGMENTATIONS if name in DEFAULT_CFG_DICT}


def measurer(job: Job, case: Case, budget: Budget, on_entry: Callable[[Entry], object]) -> Callable[[Entry], None]:
    """Return a function that measures an entry once.

    Args:
        job: What all measurements have in common.
        case: The device, and the precision where no setting says otherwise.
        budget: The time, at whose end a training is left.
        on_entry: Called before each measurement.
    """

    def on_step() -> None:
        if budget.left() <= 0:
            raise Stop(None, "the time is over")

    def measure(entry: Entry) -> None:
        on_entry(entry)
        settings = dict(entry.settings)
        precision = settings.pop("amp", case.precision)
        this = replace(case, precision=precision, compile=settings.pop("compile", False))
        arguments = {**job.arguments, **_ALWAYS, **settings}
        try:
            with with_package(), quiet():
                entry.windows.append(train(replace(job, arguments=arguments, on_step=on_step), this, "ours"))
        except NotMeasured as error:
            if budget.left() > 0:
                entry.failure = str(error)
        except Exception as error:  # an error of a trainer, a driver or a compiler is a result, too
            entry.failure = first_line(error)
        if entry.windows and entry.windows[-1].seconds <= 0:
            entry.failure = "the device's clock stood still"
        if entry.failure:
            entry.windows.clear()

    return measure
