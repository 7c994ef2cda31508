"""What to measure, from the command line."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..arguments import choices
from ..measurement.cases import WARMUP, WINDOW_SECONDS

__all__ = ["DEVICES", "MODES", "PRECISIONS", "WARMUP", "WINDOW_SECONDS", "Settings", "device_words"]

DEVICES = ("cpu", "xpu", "xpu:0", "xpu:1")  # … and so on, see `device_words`
PRECISIONS = ("fp32", "fp16", "bf16")
MODES = ("train", "infer")


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        model: A `.yaml` or `.pt`, as `YOLO` takes it.
        imgsz: Side of the images in pixels.
        batch: Images per step.
        devices: As given: "cpu", "xpu", "xpu:1"; "xpu:0,1" are two that train together.
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


def device_words(text: str) -> list[str]:
    """Return the devices of a comma-separated list, where a number belongs to what is before it: "cpu,xpu:0,1"."""
    words = choices(DEVICES, accept=_are_xpus)(re.sub(r"\s*,\s*(?=\d)", "+", text))
    return [word.replace("+", ",") for word in words]


def _are_xpus(word: str) -> bool:
    return re.fullmatch(r"xpu:\d+(\+\d+)*", word) is not None
