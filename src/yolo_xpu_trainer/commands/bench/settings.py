"""What to measure, from the command line."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..measurement.cases import WARMUP, WINDOW_SECONDS

__all__ = ["DEVICES", "MODES", "PRECISIONS", "WARMUP", "WINDOW_SECONDS", "Settings", "is_xpu"]

DEVICES = ("cpu", "xpu", "xpu:0", "xpu:1")  # … and so on, see `is_xpu`
PRECISIONS = ("fp32", "fp16", "bf16")
MODES = ("train", "infer")


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        model: A `.yaml` or `.pt`, as `YOLO` takes it.
        imgsz: Side of the images in pixels.
        batch: Images per step.
        devices: As given: "cpu", "xpu", "xpu:1".
        precisions: Of `PRECISIONS`.
        modes: Of `MODES`.
        compile: Whether each case is measured with `torch.compile`, too.
        switches: Whether trainings on an XPU are measured with each switch, too.
        pure_bf16: Whether trainings with bf16 weights are measured, too, as a reference.
        steps: Steps in a window, at most.
        repeats: Windows per result.
    """

    model: str
    imgsz: int
    batch: int
    devices: list[str]
    precisions: list[str]
    modes: list[str]
    compile: bool
    switches: bool
    pure_bf16: bool
    steps: int
    repeats: int

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Settings:
        """Return the settings that a parsed command line asks for."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    def as_dict(self) -> dict[str, Any]:
        """Return what the results depend on, as JSON values."""
        return {**asdict(self), "warmup_steps": WARMUP, "window_seconds": WINDOW_SECONDS}


def is_xpu(word: str) -> bool:
    """Whether a word is the name of an XPU, such as "xpu:2"."""
    return word.startswith("xpu:") and word[4:].isdecimal()
