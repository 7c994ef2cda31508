"""What was measured: windows, results, and the report that holds them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from ..measurement.cases import Case, Device, Implementation, Window
from .settings import Settings

__all__ = ["MEASURED", "SCHEMA", "TITLES", "Case", "Device", "Report", "Result", "Window"]

MEASURED = {
    "train": "images per second of the complete training loop of Ultralytics' trainer in steady state: batches from "
    "the default number of loader workers (images cached in RAM, no augmentation), forward, loss, backward, AdamW step "
    "and EMA every 64 images, logging, ends of epochs; without validation and saving. The AMP check, which happens "
    "once before a training, is skipped.",
    "infer": "images per second of YOLO.predict on one batch of uint8 images in memory: preprocessing, forward, "
    "postprocessing, results. An untrained model finds no objects, so NMS has little to do.",
}
"""What the figures of each mode mean."""

SCHEMA = 1
"""Version of the structure of `bench.json`: another one where a value changes, the same where one is added."""

TITLES = {"train": "Training", "infer": "Inference"}

DATA_BOUND = 0.2
"""Fraction of a window spent waiting for batches from which on the report has a note."""


@dataclass
class Result:
    """The outcome of one case with one implementation.

    Attributes:
        case: The case.
        implementation: "plain" Ultralytics, "ours", or "both" if they are the same code.
        status: "skipped" if it isn't possible, "failed" if it was tried.
        reason: Why it was skipped or failed.
        windows: The measurements, in order.
        warnings: Warnings of Ultralytics.
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
        """Mark the result as failed, and drop its windows: they aren't reliable."""
        self.status, self.reason = "failed", reason
        self.windows.clear()

    def figures(self) -> list[float]:
        """Return the images per second of each window."""
        return [window.images_per_second for window in self.windows]

    @property
    def median(self) -> float | None:
        """Median images per second, None unless measured."""
        return statistics.median(self.figures()) if self.windows else None

    def memory(self, kind: str) -> int | None:
        """Return the highest peak in bytes, of "allocated" or "reserved" memory."""
        return max((window.memory[kind] for window in self.windows if kind in window.memory), default=None)

    def telemetry(self, name: str) -> float | None:
        """Return the median of a reading, over the windows."""
        readings = [window.telemetry[name] for window in self.windows if name in window.telemetry]
        return statistics.median(readings) if readings else None

    @property
    def images_per_joule(self) -> float | None:
        """Median images per joule, by the device's own reading of its power; None where it has none."""
        each = [w.images_per_second / w.telemetry["power_draw"] for w in self.windows if w.telemetry.get("power_draw")]
        return statistics.median(each) if each else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything, as JSON values."""
        figures = self.figures()
        spread = {"median": self.median, "least": min(figures, default=0), "greatest": max(figures, default=0)}
        return {
            "mode": self.case.mode,
            "device": self.case.device.name,
            "precision": self.case.precision,
            "compile": self.case.compile,
            "arguments": self.case.arguments,
            "implementation": self.implementation,
            "status": self.status,
            "reason": self.reason,
            "images_per_second": {**spread, "windows": figures} if figures else None,
            "images_per_joule": self.images_per_joule,
            "windows": [asdict(window) for window in self.windows],
            "warnings": self.warnings,
        }


@dataclass
class Report:
    """All results of a bench.

    Attributes:
        settings: What was requested.
        environment: Devices and software, as JSON values.
        devices: The devices measured.
        results: By case, and within a case by implementation.
        notes: Remarks on the figures.
        created: Date and time.
    """

    settings: Settings
    environment: dict[str, Any]
    devices: list[Device]
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def simulated(self) -> bool:
        """Whether any device is simulated."""
        return any(device.simulated for device in self.devices)

    @property
    def subject(self) -> str:
        """Model and sizes."""
        s = self.settings
        return f"{Path(s.model).stem}, imgsz {s.imgsz}, batch {s.batch}"

    def tried(self, mode: str) -> list[tuple[Case, dict[str, Result]]]:
        """Return the cases of a mode, unless skipped by every implementation, with their results by implementation."""
        found: dict[Case, dict[str, Result]] = {}
        for result in self.results:
            if result.case.mode == mode:
                found.setdefault(result.case, {})[result.implementation] = result
        return [item for item in found.items() if any(result.status != "skipped" for result in item[1].values())]

    def ratio(self, result: Result) -> float | None:
        """Return a speed, divided by the one that it is compared with; None if either wasn't measured.

        With a switch that is the same code's without it; else it is plain Ultralytics', and `result` is of ours.
        """
        if result.case.switch:
            case, implementation = replace(result.case, switch=None), result.implementation
        elif result.implementation == "ours":
            case, implementation = result.case, "plain"
        else:
            return None
        bases = (other for other in self.results if (other.case, other.implementation) == (case, implementation))
        base = next((other.median for other in bases), None)
        return result.median / base if result.median and base else None

    def scaling(self, result: Result) -> float | None:
        """Return how many times as fast several XPUs train as their first one alone; None if either wasn't measured."""
        if not result.case.device.indices:
            return None
        alone = f"xpu:{result.case.device.index}"
        for other in self.results:
            same = replace(other.case, device=result.case.device) == result.case
            if same and other.case.device.name == alone and other.implementation == result.implementation:
                return result.median / other.median if result.median and other.median else None
        return None

    def footnotes(self) -> list[str]:
        """Return the notes, the reasons for missing results, warnings and doubts, each once."""
        notes = list(self.notes)
        if self.simulated:
            notes.insert(
                0, "SIMULATED: the XPU is the host's processor and memory; its figures say nothing about hardware."
            )
        shared: dict[str, list[str]] = {}
        for result in self.results:
            if result.status != "measured":
                shared.setdefault(f" {result.status}: {result.reason}", []).append(str(result))
        for result in self.results:
            for warning in result.warnings:
                shared.setdefault(f": Ultralytics warned: {warning}", []).append(str(result))
        notes += [", ".join(results) + text for text, results in shared.items()]
        return notes + list(self._scalings()) + list(self._doubts())

    def _scalings(self) -> Iterator[str]:
        """Yield what several XPUs achieve together."""
        for result in self.results:
            if (scaling := self.scaling(result)) is not None:
                count = len(result.case.device.indices)
                yield (
                    f"{result}: {scaling:.2f} times the images per second of xpu:{result.case.device.index} alone, "
                    f"{scaling / count:.0%} of {count} times, with {self.settings.batch} images a step on each."
                )

    def _doubts(self) -> Iterator[str]:
        """Yield why a figure may be too low or too high."""
        for result in self.results:
            waited = [w.waiting_seconds / w.seconds for w in result.windows if w.waiting_seconds is not None]
            if waited and (part := statistics.median(waited)) > DATA_BOUND:
                yield (
                    f"{result} spent {part:.0%} of its time waiting for the data loader: the device is faster than "
                    "this figure. More processor cores or a larger model would load it more."
                )
            steps = [w.optimizer_steps for w in result.windows if w.optimizer_steps is not None]
            taken, due = sum(taken for taken, _ in steps), sum(due for _, due in steps)
            if taken < due:
                yield f"{result} took {taken} of {due} optimizer steps: the loss scaler skipped infinite gradients."

    def as_dict(self) -> dict[str, Any]:
        """Return everything, as JSON values."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "simulated": self.simulated,
            "settings": self.settings.as_dict(),
            "measured": {mode: MEASURED[mode] for mode in self.settings.modes},
            "environment": self.environment,
            "results": [{**result.as_dict(), "scaling": self.scaling(result)} for result in self.results],
            "notes": self.footnotes(),
        }
