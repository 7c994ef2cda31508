"""What was reached, and may not be lost again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .cases import Case
from .counting import Counted, waits

__all__ = ["Limits", "lost"]


class Launches(NamedTuple):
    """The most kernels a step, by plain Ultralytics', in each precision."""

    bf16: float
    fp32: float


@dataclass(frozen=True)
class Limits:
    """The most that a model may take.

    Attributes:
        waits: How often the host waits in a step.
        pageable: How often a step copies from pageable memory.
        launches: Kernels a step with AdamW, by plain Ultralytics'.
        validation: How often the host waits for an image in validation, of batches of 8 (OBB: 4).
    """

    waits: float
    pageable: float
    launches: Launches
    validation: float = 3


REACHED = {
    "yolo11n": Limits(waits=2, pageable=1, launches=Launches(0.76, 0.88)),
    "yolo26n": Limits(waits=4, pageable=2, launches=Launches(0.77, 0.89)),
    "yolo11n-seg": Limits(waits=2, pageable=2, launches=Launches(0.76, 0.88), validation=3.5),
    "yolo26n-seg": Limits(waits=6, pageable=2, launches=Launches(0.78, 0.88), validation=4.5),
    "yolo11n-pose": Limits(waits=2, pageable=3, launches=Launches(0.75, 0.87)),
    "yolo11n-obb": Limits(waits=2, pageable=1, launches=Launches(0.79, 0.9), validation=5),
    "yolo11n-cls": Limits(waits=0, pageable=0, launches=Launches(0.72, 0.87)),
}
_SAVE = 10  # waits for a checkpoint
_SECONDS = {"bf16": 1.0, "fp32": 1.0}  # host time a step, without kernels, by plain Ultralytics'
_SAVE_SECONDS = 0.9  # by plain Ultralytics', without what a disk takes to confirm, which it doesn't ask for
# By plain Ultralytics', where it isn't at most 1: boxes are decoded in float32, and a weight's gradient is brought into
# channels_last, which a step at 64 pixels doesn't hide. The bytes of a batch this small stay, packed, with its labels.
_PEAKS = {
    ("fp32", "validation"): 1.01,
    ("fp32", "final evaluation"): 1.01,
    ("bf16", "first step of a halved batch"): 1.04,
    ("bf16", "validation"): 1.02,
    ("bf16", "final evaluation"): 1.02,
    ("fp32", "first step of a halved batch"): 1.04,
}

# A third of a MuSGD step's kernels are its orthogonalisation: Ultralytics', and on a CPU most of the time.
_MUSGD = {
    "bf16": {"launches": 0.83, "seconds": 1.05, "peak": 1.03},
    "fp32": {"launches": 0.92, "seconds": 1.05, "peak": 1.03},
}


def lost(case: Case, plain: Counted, ours: Counted, batch_bytes: int) -> Iterator[str]:
    """Name each goal that is missed.

    Args:
        case: What was trained.
        plain: What plain Ultralytics did.
        ours: What it did with this package.
        batch_bytes: The bytes of a batch's images, which prefetching keeps once more.
    """
    limits = REACHED[case.model]
    musgd = _MUSGD[case.precision] if case.optimizer == "MuSGD" else {}
    last_reading = 1 / ours.steps  # the epoch's last losses are read
    found = {
        "waits a step": (waits(ours.step) / ours.steps, limits.waits + last_reading),
        "pageable copies a step": (ours.step.h2d["pageable", "blocking"] / ours.steps, limits.pageable),
        "launches a step, by plain": (
            ratio(ours.step.launches, plain.step.launches),
            musgd.get("launches", getattr(limits.launches, case.precision)),
        ),
        "waits an image in validation": (waits(ours.validation) / ours.images, limits.validation),
        "waits a checkpoint": (waits(ours.save), _SAVE),
        "peak memory": (ours.peak_memory, plain.peak_memory * musgd.get("peak", 1) + batch_bytes),
    }
    if ours.seconds and plain.seconds:
        seconds = ratio(ours.least_seconds, plain.least_seconds)
        found["host time a step, by plain"] = seconds, musgd.get("seconds", _SECONDS[case.precision])
    if ours.save_seconds and plain.save_seconds:
        found["save time, by plain"] = ratio(ours.least_save_seconds, plain.least_save_seconds), _SAVE_SECONDS
    for moment, held in ours.peaks.items():
        most = plain.peaks[moment] * _PEAKS.get((case.precision, moment), 1)
        found[f"peak memory, {moment}"] = held, most + batch_bytes
    for name, (value, most) in found.items():
        if value > most:
            yield f"{case}: {name}: {value:.4g}, at most {most:.4g} was reached"


def ratio(ours: float, plain: float) -> float:
    """Return how much ours is of plain Ultralytics'."""
    return ours / plain if plain else 0.0
