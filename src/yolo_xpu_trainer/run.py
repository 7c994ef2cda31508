"""What was decided about one run on an XPU: its devices, its precision, its options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from .devices import DeviceInfo, info
from .options import Options

__all__ = ["AMP_VARIABLE", "AUTO", "CHECKPOINT_KEY", "Precision", "Run"]

AMP_VARIABLE = "YOLO_XPU_AMP"
AUTO = "auto"  # its value where the precision is left to the device
CHECKPOINT_KEY = "xpu_trainer"


@dataclass(frozen=True)
class Precision:
    """How a run computes.

    Attributes:
        name: "bf16", "fp16" or "fp32".
        reason: Why, as the end of the sentence "bf16, because …".
        requested: Whether the user named it, so that no check may overrule it.
    """

    name: Literal["bf16", "fp16", "fp32"]
    reason: str
    requested: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of autocast, or None where there is no autocast."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients underflow without loss scaling: float16 has 5 exponent bits, bfloat16 has 8."""
        return self.name == "fp16"


@dataclass(frozen=True)
class Targets:
    """What the host knows of the batch that was last moved to the device.

    Attributes:
        total: How many targets it has.
        most: How many the image with the most has.
    """

    total: int
    most: int

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> Targets | None:
        """Count a batch's targets; None where it has none, or they aren't on the host."""
        index = batch.get("batch_idx")
        if not isinstance(index, torch.Tensor) or index.device.type != "cpu" or not index.numel():
            return None
        counts = index.view(-1).long().bincount()
        return cls(index.numel(), int(counts.max()))


@dataclass
class Run:
    """One run on one or more XPUs, as decided before it starts.

    Attributes:
        device: The XPU that this process trains on.
        indices: Every XPU of the run; more than one means DDP, one process each.
        precision: How it computes.
        options: The `xpu_*` options.
        channels_last: Whether convolutions work in channels_last (NHWC).
        targets: What the host knows of the batch at hand.
        readings: What the progress line last read of the losses.
        resumed: What the checkpoint that it resumes remembers; empty for a new run.
    """

    device: DeviceInfo
    indices: tuple[int, ...]
    precision: Precision
    options: Options
    channels_last: bool = False
    targets: Targets | None = None
    readings: Any = None
    resumed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device_string(self) -> str:
        """The devices as Ultralytics writes them: "xpu:0", or "xpu:0,1"."""
        return "xpu:" + ",".join(map(str, self.indices))

    @property
    def is_worker(self) -> bool:
        """Whether this process is one of a DDP run's workers, whose parent has told the user and decided already."""
        return "LOCAL_RANK" in os.environ

    def autocast(self, enabled: bool = True) -> torch.amp.autocast_mode.autocast:
        """Return the autocast context of this run's precision; one that switches autocast off where not enabled."""
        dtype = self.precision.dtype
        return torch.amp.autocast("xpu", dtype=dtype, enabled=enabled and dtype is not None)

    def move_to(self, index: int) -> None:
        """Note that this process, a DDP worker, trains on another of the run's XPUs."""
        self.device = info(index)

    def fall_back_to_fp32(self, reason: str) -> None:
        """Compute in float32 after all."""
        self.precision = replace(self.precision, name="fp32", reason=reason)

    def environment(self) -> dict[str, str]:
        """Return the environment variables that make a child process (a DDP worker) decide the same.

        A precision that wasn't asked for is left to the child, which sees the same devices, and may check it.
        """
        named = self.precision.name if self.precision.requested else AUTO
        return {AMP_VARIABLE: named, **self.options.environment()}

    def settings(self) -> dict[str, Any]:
        """Return what a checkpoint remembers of this run: built-in types only, readable anywhere."""
        return {
            "device": self.device_string,
            "precision": self.precision.name,
            "options": self.options.as_dict(),
        }

    def __str__(self) -> str:
        memory = f"{self.device.total_memory / 2**30:.1f} GiB" + (" shared with the host" * self.device.integrated)
        others = f" and {len(self.indices) - 1} more" if len(self.indices) > 1 else ""
        return f"{self.device}{others} ({memory}), {self.precision.name} because {self.precision.reason}, " + (
            "channels_last memory format" if self.channels_last else "NCHW memory format as that was asked for"
        )


def saved_settings(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint remembers of the XPU run that wrote it, or an empty dict."""
    settings = checkpoint.get(CHECKPOINT_KEY)
    return dict(settings) if isinstance(settings, Mapping) else {}
