"""What was measured: windows, results and the report that holds them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from .settings import Settings

__all__ = ["MEASURED", "TITLES", "Case", "Report", "Result", "Target", "Window"]

Implementation = Literal["plain", "ours", "both"]

MEASURED = {
    "train": "images per second of the whole training loop of Ultralytics' trainer in steady state: batches from the "
    "default number of loader workers (images cached in RAM, no augmentation), forward, loss, backward, AdamW step and "
    "EMA every 64 images, logging, ends of epochs; without validation and saving. The AMP check, which happens once "
    "before a training, is skipped.",
    "infer": "images per second of YOLO.predict on one batch of uint8 images in memory: preprocessing, forward, "
    "postprocessing, results. An untrained model finds nothing, so NMS has next to nothing to do.",
}
"""What the figures of each mode are."""

TITLES = {"train": "Training", "infer": "Inference"}

DATA_BOUND = 0.2
"""Part of a window spent waiting for batches from which on a note says so."""


@dataclass(frozen=True)
class Target:
    """A device to measure.

    Attributes:
        name: As PyTorch names it: "cpu" or "xpu:0".
        title: What it is: "Intel Arc B580 Graphics".
        driver: Version of its driver, "-" for a CPU.
        index: Its index among the XPUs, None for a CPU.
        has_fp16: Whether it computes in float16.
        simulated: Whether its figures say nothing about hardware.
    """

    name: str
    title: str
    driver: str = "-"
    index: int | None = None
    has_fp16: bool = True
    simulated: bool = False

    @property
    def label(self) -> str:
        """Its title, with a warning where it is simulated."""
        return f"{self.title} (simulated)" if self.simulated else self.title


@dataclass(frozen=True)
class Case:
    """One kind of run, the same for plain Ultralytics and for this package."""

    mode: str
    target: Target
    precision: str
    compile: bool = False

    @property
    def variant(self) -> str:
        """Device, precision and compilation: what tells cases of the same mode apart."""
        return f"{self.target.name} {self.precision}{' compiled' if self.compile else ''}"

    def __str__(self) -> str:
        return f"{self.mode} {self.variant}"


@dataclass(frozen=True)
class Window:
    """One measurement.

    Attributes:
        images: How many images went through.
        seconds: How long that took.
        steps: In how many steps.
        warmup_steps: Steps before.
        waiting_seconds: For how much of it the training loop was between steps: waiting for batches, ending epochs.
            None for inference.
        optimizer_steps: Optimizer steps taken within and due within, None for inference. The loss scaler leaves out
            those whose gradients are infinite.
        memory: Peaks of the run in bytes, by "allocated" and "reserved"; empty for a CPU.
        telemetry: Medians of the readings within, by name; empty where there are none.
    """

    images: int
    seconds: float
    steps: int
    warmup_steps: int
    waiting_seconds: float | None = None
    optimizer_steps: tuple[int, int] | None = None
    memory: dict[str, int] = field(default_factory=dict)
    telemetry: dict[str, float] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """The figure."""
        return self.images / self.seconds


@dataclass
class Result:
    """What came of one case with one implementation.

    Attributes:
        case: The case.
        implementation: "plain" Ultralytics, "ours", or "both" where they are the same code.
        status: "skipped" where it can't be done, "failed" where it was tried.
        reason: Why, unless measured.
        windows: The measurements, in order.
        warnings: What Ultralytics warned of.
    """

    case: Case
    implementation: Implementation
    status: Literal["measured", "skipped", "failed"] = "measured"
    reason: str = ""
    windows: list[Window] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return str(self.case) if self.implementation == "both" else f"{self.implementation} {self.case}"

    def fail(self, reason: str) -> None:
        """Note that it can't be measured after all. What was measured before is dropped: the run isn't sound."""
        self.status, self.reason = "failed", reason
        self.windows.clear()

    def was_tried(self) -> bool:
        """Whether it wasn't left out from the start."""
        return self.status != "skipped"

    def figures(self) -> list[float]:
        """Return images per second, a figure a window."""
        return [window.images_per_second for window in self.windows]

    @property
    def median(self) -> float | None:
        """Median images per second, None unless measured."""
        return statistics.median(self.figures()) if self.windows else None

    def memory(self, kind: str) -> int | None:
        """Return the greatest peak in bytes, of "allocated" or "reserved" memory."""
        return max((window.memory[kind] for window in self.windows if kind in window.memory), default=None)

    def telemetry(self, name: str) -> float | None:
        """Return the median of a reading, over the windows."""
        readings = [window.telemetry[name] for window in self.windows if name in window.telemetry]
        return statistics.median(readings) if readings else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything, as values that JSON knows."""
        figures = self.figures()
        spread = {"median": self.median, "least": min(figures, default=0), "greatest": max(figures, default=0)}
        return {
            "mode": self.case.mode,
            "device": self.case.target.name,
            "precision": self.case.precision,
            "compile": self.case.compile,
            "implementation": self.implementation,
            "status": self.status,
            "reason": self.reason,
            "images_per_second": {**spread, "windows": figures} if figures else None,
            "windows": [asdict(window) for window in self.windows],
            "warnings": self.warnings,
        }


@dataclass
class Report:
    """Everything that a bench found.

    Attributes:
        settings: What was asked for.
        environment: What it ran on, as values that JSON knows.
        targets: The devices measured.
        results: By case, and within by implementation.
        notes: What the reader has to know beside the figures.
        created: When.
    """

    settings: Settings
    environment: dict[str, Any]
    targets: list[Target]
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def simulated(self) -> bool:
        """Whether any figure comes from a simulated device."""
        return any(target.simulated for target in self.targets)

    @property
    def subject(self) -> str:
        """Model and sizes, in a few words."""
        s = self.settings
        return f"{Path(s.model).stem}, imgsz {s.imgsz}, batch {s.batch}"

    def cases(self, mode: str) -> list[tuple[Case, dict[str, Result]]]:
        """Return each case of a mode with its results by implementation."""
        found: dict[Case, dict[str, Result]] = {}
        for result in self.results:
            if result.case.mode == mode:
                found.setdefault(result.case, {})[result.implementation] = result
        return list(found.items())

    def tried(self, mode: str) -> list[tuple[Case, dict[str, Result]]]:
        """Return the cases of a mode of which anything was tried."""
        return [(case, results) for case, results in self.cases(mode) if any(map(Result.was_tried, results.values()))]

    def footnotes(self) -> list[str]:
        """Return what the figures leave open: the notes, and why what is missing is missing, each reason once."""
        notes = list(self.notes)
        if self.simulated:
            notes.insert(
                0, "SIMULATED: the XPU is the host's processor and memory; its figures say nothing of hardware."
            )
        shared: dict[str, list[str]] = {}
        for result in self.results:
            if result.status != "measured":
                shared.setdefault(f" {result.status}: {result.reason}", []).append(str(result))
        for result in self.results:
            for warning in result.warnings:
                shared.setdefault(f": Ultralytics warned: {warning}", []).append(str(result))
        notes += [", ".join(results) + text for text, results in shared.items()]
        return notes + list(self._doubts())

    def _doubts(self) -> Iterator[str]:
        """Yield what makes a figure less than it seems."""
        for result in self.results:
            waited = [w.waiting_seconds / w.seconds for w in result.windows if w.waiting_seconds is not None]
            if waited and (part := statistics.median(waited)) > DATA_BOUND:
                yield (
                    f"{result} spent {part:.0%} of its time waiting for the data loader, "
                    "so more processor cores, or a larger model, would show more of the device."
                )
            steps = [w.optimizer_steps for w in result.windows if w.optimizer_steps is not None]
            taken, due = sum(taken for taken, _ in steps), sum(due for _, due in steps)
            if taken < due:
                yield (
                    f"{result} took {taken} of {due} optimizer steps: the loss scaler "
                    "left the others out, for their gradients were infinite."
                )

    def as_dict(self) -> dict[str, Any]:
        """Return everything, as values that JSON knows."""
        return {
            "schema": 1,
            "created": self.created,
            "simulated": self.simulated,
            "settings": self.settings.as_dict(),
            "measured": {mode: MEASURED[mode] for mode in self.settings.modes},
            "environment": self.environment,
            "results": [result.as_dict() for result in self.results],
            "notes": self.footnotes(),
        }
