"""What is to be measured, read from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError

__all__ = ["DEVICES", "MODES", "PRECISIONS", "WARMUP", "WINDOW_SECONDS", "Settings", "parse"]

DEVICES = ("cpu", "xpu", "xpu:0", "xpu:1")  # … and so on
PRECISIONS = ("fp32", "fp16", "bf16")
MODES = ("train", "infer")

WARMUP = 8
"""Steps before a window: kernels are compiled and caches filled in the first ones."""

WINDOW_SECONDS = 20
"""A window that has lasted this long ends at the next optimizer step: on a CPU a step can take ten seconds."""


@dataclass(frozen=True)
class Settings:
    """What is to be measured.

    Attributes:
        model: A `.yaml` or `.pt`, as `YOLO` takes it.
        imgsz: Side of the images in pixels.
        batch: Images a step.
        devices: As given: "cpu", "xpu", "xpu:1".
        precisions: Of `PRECISIONS`.
        modes: Of `MODES`.
        compile: Whether everything is measured with `torch.compile`, too.
        steps: Steps in a window, at most.
        repeats: Windows of each kind.
        output: Directory for what comes out.
    """

    model: str
    imgsz: int
    batch: int
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    modes: tuple[str, ...]
    compile: bool
    steps: int
    repeats: int
    output: Path

    def as_dict(self) -> dict[str, Any]:
        """Return what the figures depend on, as values that JSON knows."""
        shown = asdict(self)
        del shown["output"]
        return {**shown, "warmup_steps": WARMUP, "window_seconds": WINDOW_SECONDS}


def parse(args: argparse.Namespace) -> Settings:
    """Check the command's options.

    Raises:
        UsageError: A value is none that its option takes.
    """
    model = str(args.model)
    if not model.endswith((".yaml", ".yml", ".pt")):
        raise UsageError(
            f"--model {model!r} can't be trained, for it is neither a .yaml nor a .pt. "
            "Name an architecture, such as yolo11n.yaml, or a checkpoint, such as yolo11n.pt."
        )
    return Settings(
        model=model,
        imgsz=_number("--imgsz", args.imgsz, low=64, step=32),
        batch=_number("--batch", args.batch),
        devices=_devices(args.devices),
        precisions=_choices("--precision", args.precision, PRECISIONS),
        modes=_choices("--modes", args.modes, MODES),
        compile=bool(args.compile),
        steps=_number("--steps", args.steps),
        repeats=_number("--repeats", args.repeats),
        output=Path(args.output),
    )


def _number(option: str, text: str, low: int = 1, step: int = 1) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low or value % step:
        multiple = f" that is a multiple of {step}" if step > 1 else ""
        raise UsageError(f"{option} {text!r} was given; it takes a whole number of at least {low}{multiple}.")
    return value


def _choices(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return what a list with commas names, each once, in the order given."""
    named = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    wrong = [word for word in named if word not in known]
    if wrong or not named:
        given = ", ".join(map(repr, wrong)) or "nothing"
        raise UsageError(
            f"{option} {text!r} names {given}; it takes any of {', '.join(known)}, with commas between them."
        )
    return named


def _devices(text: str) -> tuple[str, ...]:
    named = [word.strip().lower() for word in text.split(",") if word.strip()]
    indexed = [word for word in named if word.startswith("xpu:") and word[4:].isdecimal()]
    return _choices("--devices", text, [*DEVICES, *(word for word in indexed if word not in DEVICES)])
