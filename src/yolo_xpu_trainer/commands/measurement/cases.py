"""What is measured, and what comes out of it. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

__all__ = ["PURE_BF16", "WARMUP", "WINDOW_SECONDS", "Case", "Device", "Implementation", "Sizes", "Switch", "Window"]

WARMUP = 8
"""Steps before a window: the first ones compile kernels and fill caches."""

WINDOW_SECONDS = 20
"""A window that has lasted this long ends at the next optimizer step: on a CPU a step can take ten seconds."""

PURE_BF16 = "pure bf16"
"""The precision of a training whose weights are bf16, see `pure_bf16.py`."""

Implementation = Literal["plain", "ours", "both"]


class Sizes(Protocol):
    """The sizes of a measurement.

    Attributes:
        imgsz: Side of the images in pixels.
        batch: Images per step.
        steps: Steps in a window, at most.
    """

    @property
    def imgsz(self) -> int: ...  # noqa: D102 - see above

    @property
    def batch(self) -> int: ...  # noqa: D102

    @property
    def steps(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Device:
    """A device to measure.

    Attributes:
        name: As PyTorch calls it: "cpu" or "xpu:0"; several XPUs that train together are "xpu:0,1".
        title: Its model: "Intel Arc B580 Graphics".
        driver: Version of its driver, "-" for a CPU.
        index: Its index among the XPUs, None for a CPU; of several the first.
        has_fp16: Whether it computes in float16.
        simulated: Whether it is simulated, so that its figures don't apply to hardware.
        indices: Those of several XPUs that train together, else empty.
    """

    name: str
    title: str
    driver: str = "-"
    index: int | None = None
    has_fp16: bool = True
    simulated: bool = False
    indices: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Its title, marked if it is simulated."""
        return f"{self.title} (simulated)" if self.simulated else self.title


@dataclass(frozen=True)
class Switch:
    """A value of an argument, other than the default.

    Attributes:
        keyword: As `train()` takes it.
        value: The value.
    """

    keyword: str
    value: Any

    def __str__(self) -> str:
        return f"{self.keyword}={self.value}"


@dataclass(frozen=True)
class Case:
    """One kind of run, the same for plain Ultralytics and for this package."""

    mode: str
    device: Device
    precision: str
    compile: bool = False
    switch: Switch | None = None

    @property
    def variant(self) -> str:
        """Precision, compilation, and the switch."""
        return self.precision + " compiled" * self.compile + (f" {self.switch}" if self.switch else "")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the switch says, as arguments of a training."""
        return {self.switch.keyword: self.switch.value} if self.switch else {}

    def __str__(self) -> str:
        return f"{self.mode} {self.device.name} {self.variant}"


@dataclass(frozen=True)
class Window:
    """One measurement.

    Attributes:
        images: Number of images processed.
        seconds: Duration.
        steps: Number of steps.
        warmup_steps: Number of steps before.
        waiting_seconds: Time between steps, in which the training loop waits for batches and ends epochs; None for
            inference.
        optimizer_steps: Optimizer steps taken and due, None for inference. The loss scaler skips those with infinite
            gradients.
        memory: Peaks of the run in bytes, by "allocated" and "reserved"; empty for a CPU.
        telemetry: Medians of the readings, by name; empty if there are none.
        wall_seconds: Duration by the host's clock, which may not be the one that is measured by; None if unknown.
    """

    images: int
    seconds: float
    steps: int
    warmup_steps: int
    waiting_seconds: float | None = None
    optimizer_steps: tuple[int, int] | None = None
    memory: dict[str, int] = field(default_factory=dict)
    telemetry: dict[str, float] = field(default_factory=dict)
    wall_seconds: float | None = None

    @property
    def images_per_second(self) -> float:
        """The figure."""
        return self.images / self.seconds
