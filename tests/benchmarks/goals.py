"""What was reached, and may not be lost again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .cases import Case
from .counting import Counted, waits

__all__ = ["Limits", "lost"]


@dataclass(frozen=True)
class Limits:
    """The most that a case may take.

    Attributes:
        waits: How often the host waits in a step.
        pageable: How often a step copies from pageable memory.
        launches: Kernels a step, by plain Ultralytics'.
        validation: How often the host waits for an image in validation.
        save: How often it waits for a checkpoint.
        seconds: Host time a step, by plain Ultralytics'.
    """

    waits: float
    pageable: float
    launches: float = 0.95
    validation: float = 3
    save: float = 10
    seconds: float = 1.0


REACHED = {
    "yolo11n": Limits(waits=2, pageable=2, launches=0.92),
    "yolo26n": Limits(waits=4, pageable=4, launches=0.95),
    "yolo11n-seg": Limits(waits=3, pageable=3, launches=0.95),
    "yolo26n-seg": Limits(waits=18, pageable=6, launches=0.97),
    "yolo11n-pose": Limits(waits=4, pageable=5, launches=0.95),
    "yolo11n-obb": Limits(waits=7, pageable=2, launches=0.95, validation=5),
    "yolo11n-cls": Limits(waits=0, pageable=0, launches=0.95),
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
    last_reading = 1 / ours.steps  # the epoch's last losses are read
    found = {
        "waits a step": (waits(ours.step) / ours.steps, limits.waits + last_reading),
        "pageable copies a step": (ours.step.h2d["pageable", "blocking"] / ours.steps, limits.pageable),
        "launches a step, by plain": (ratio(ours.step.launches, plain.step.launches), limits.launches),
        "waits an image in validation": (waits(ours.validation) / ours.images, limits.validation),
        "waits a checkpoint": (waits(ours.save), limits.save),
        "peak memory": (ours.peak_memory, plain.peak_memory + batch_bytes),
    }
    if ours.seconds and plain.seconds:
        found["host time a step, by plain"] = ratio(ours.median_seconds, plain.median_seconds), limits.seconds
    for name, (value, most) in found.items():
        if value > most:
            yield f"{case}: {name}: {value:.4g}, at most {most:.4g} was reached"


def ratio(ours: float, plain: float) -> float:
    """Return how much ours is of plain Ultralytics'."""
    return ours / plain if plain else 0.0
