"""What was decided about one run on an XPU: its devices, its precision, its options; and what policies note of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from .devices import DeviceInfo, info
from .options import Options
from .recovery import Recovery

__all__ = ["Precision", "Run", "Stash", "StashKey", "checkpoint_of", "state_of"]

AMP_VARIABLE = "YOLO_XPU_AMP"
AUTO = "auto"  # its value where the precision is left to the device
CHECKPOINT_KEY = "xpu_trainer"

T = TypeVar("T")


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


class StashKey(Generic[T]):
    """A key of a run's stash, whose value has type `T`: `READINGS = StashKey[Readings]()` in the policy's own file."""


class Stash:
    """What policies note of a run, each under a key of its own."""

    def __init__(self) -> None:
        self._values: dict[StashKey[Any], Any] = {}

    def __setitem__(self, key: StashKey[T], value: T) -> None:
        self._values[key] = value

    def __getitem__(self, key: StashKey[T]) -> T:
        return self._values[key]  # type: ignore[no-any-return]

    def __contains__(self, key: StashKey[Any]) -> bool:
        return key in self._values

    def get(self, key: StashKey[T], default: T) -> T:
        """Return the value of a key, or the default where there is none."""
        return self._values.get(key, default)  # type: ignore[no-any-return]


EAGER_STEP = StashKey[bool]()
"""Whether the step that begins computes the model eagerly, in a run with `compile`."""


@dataclass
class Run:
    """One run on one or more XPUs, as decided before it starts.

    Attributes:
        device: The XPU that this process trains on.
        indices: Every XPU of the run, one process each; this process's own where a launcher started it.
        precision: How it computes.
        options: The `xpu_*` options.
        resumed: What the checkpoint that it resumes remembers; empty for a new run.
        stash: What policies note of it.
        recovery: Which policies failed in it and are off.
        hooks: The hooks as this run asks them, a `yolo_xpu_trainer.plugins.Hooks`.
        group: The processes of a run that a launcher started, a `yolo_xpu_trainer.process_group.Group`; None elsewhere.
        watchdog: What the other processes of a run on several XPUs are told of this one, a
            `yolo_xpu_trainer.watchdog.Watchdog`.
        found: What told the `last.pt` apart that was there before the run; None where there was none.
        arguments: Names of Ultralytics' arguments that the call gave, rather than left to their defaults.
    """

    device: DeviceInfo
    indices: tuple[int, ...]
    precision: Precision
    options: Options = field(default_factory=Options)
    resumed: Mapping[str, Any] = field(default_factory=dict)
    stash: Stash = field(default_factory=Stash)
    recovery: Recovery = field(default_factory=Recovery)
    hooks: Any = None
    group: Any = None
    watchdog: Any = None
    found: tuple[int, ...] | None = None
    arguments: frozenset[str] = frozenset()

    @property
    def device_string(self) -> str:
        """The devices as Ultralytics writes them: "xpu:0", or "xpu:0,1"."""
        return "xpu:" + ",".join(map(str, self.indices))

    @property
    def world_size(self) -> int:
        """How many processes train together, one for each XPU."""
        return len(self.indices) if self.group is None else int(self.group.launch.world_size)

    @property
    def is_worker(self) -> bool:
        """Whether this process is one of a DDP run's workers, whose parent, or rank 0, tells the user and decides."""
        return "LOCAL_RANK" in os.environ if self.group is None else self.group.launch.rank > 0

    def autocast(self, enabled: bool = True, *, cache_enabled: bool = True) -> torch.amp.autocast_mode.autocast:
        """Return the autocast context of this run's precision; one that switches autocast off where not enabled.

        Args:
            enabled: Whether to autocast.
            cache_enabled: Whether rounded weights are kept until the outermost context is left.
        """
        dtype = self.precision.dtype
        return torch.amp.autocast(
            "xpu", dtype=dtype, enabled=enabled and dtype is not None, cache_enabled=cache_enabled
        )

    def move_to(self, index: int) -> None:
        """Note that this process, a DDP worker, trains on another of the run's XPUs."""
        self.device = info(index)

    def fall_back_to_fp32(self, reason: str) -> None:
        """Compute in float32 after all."""
        self.precision = replace(self.precision, name="fp32", reason=reason)

    def environment(self) -> dict[str, str]:
        """Return the environment variables that make a child process (a DDP worker) decide the same.

        A precision that wasn't asked for is left to the child, which sees the same devices, and may check it. So are
        options: a policy may ask whether the user gave one, and another version or plugin has its own defaults.
        """
        named = self.precision.name if self.precision.requested else AUTO
        return {AMP_VARIABLE: named, **Options.environment_of(self.options.decided())}

    def settings(self) -> dict[str, Any]:
        """Return what a checkpoint remembers of this run: built-in types only, readable anywhere."""
        return {
            "device": self.device_string,
            "precision": self.precision.name,
            "options": self.options.untuned(),
        }

    def __str__(self) -> str:
        memory = f"{self.device.total_memory / 2**30:.1f} GiB" + (" shared with the host" * self.device.integrated)
        others = f" and {self.world_size - 1} more" if self.world_size > 1 else ""
        if self.group is not None and self.group.machines > 1:
            others += f" on {self.group.machines} machines"
        return f"{self.device}{others} ({memory}), {self.precision.name} because {self.precision.reason}"


def state_of(path: Path) -> tuple[int, ...] | None:
    """Return what tells a file apart from the one that took its place, or None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def checkpoint_of(trainer: Any) -> Path | None:
    """Return the checkpoint that a trainer's run can go on from, or None where there is none.

    With `exist_ok=True` the `last.pt` that is there may be another run's.
    """
    last = Path(getattr(trainer, "last", None) or "")
    if not last.is_file() or (not trainer.resume and state_of(last) == trainer.xpu.found):
        return None
    return last


_TYPES: dict[str, type] = {"device": str, "precision": str, "options": Mapping, "scaler": Mapping, "tuned": Mapping}


def saved_settings(checkpoint: Any) -> dict[str, Any]:
    """Return what a checkpoint remembers of the XPU run that wrote it, or an empty dict.

    What isn't of its type, as in a file that somebody else's program has changed, is left out.
    """
    settings = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, Mapping) else None
    if not isinstance(settings, Mapping):
        return {}
    return {key: value for key, value in settings.items() if isinstance(value, _TYPES.get(key, object))}
