"""Rows for Ultralytics before 8.4.111, whose code asks `torch.cuda` whatever the device is."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch

from .. import devices
from ..errors import DeviceError
from ..plugins import manager
from ..run import Precision, Run
from .rows import Row

__all__ = ["ROWS", "RUN_ROWS", "knows_accelerators", "knows_named_precisions", "name_every_device", "setup_ddp"]

_LOGGER = logging.getLogger("ultralytics")


def knows_accelerators(run: Any = None, original: Any = None) -> bool:
    """Whether this Ultralytics asks the device's own module of PyTorch, as it does from 8.4.111 on."""
    import ultralytics.utils.torch_utils as torch_utils

    return hasattr(torch_utils, "get_torch_device_backend")


def _needed(run: Any, original: Any) -> bool:
    return not knows_accelerators()


def _no_scaler_needed() -> Precision | None:
    """Return the precision of a trainer that isn't ours: bf16, which needs no scaler, or None for float32.

    Its scaler is made for CUDA and silently disabled on an XPU; float16 without one gives NaN losses (IPEX#814).
    """
    if torch.cuda.is_available() or not devices.count():
        return None
    device = devices.info(torch.xpu.current_device())
    precision: Precision = manager().hook.xpu_precision(device=device, requested=True)
    return precision if precision.name == "bf16" else None


def _autocast(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    def autocast(enabled: bool, device: str = "cuda") -> Any:
        """Autocast the XPU where Ultralytics, not knowing better, asks for CUDA."""
        precision = _no_scaler_needed() if device == "cuda" else None
        return original(enabled, device) if precision is None else torch.amp.autocast("xpu", precision.dtype, enabled)

    return autocast


def _check_amp(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    def check_amp(model: torch.nn.Module) -> bool:
        """Allow AMP on an XPU where it needs no scaler; ask CUDA about CUDA only."""
        if next(model.parameters()).device.type != "xpu":
            return bool(original(model))
        if _no_scaler_needed() is not None:
            return True
        _LOGGER.warning(
            "XPU: this trainer's gradient scaler is CUDA's, and without one fp16 fails, so it trains in fp32. A "
            "trainer of yolo-xpu-trainer trains in fp16 here."
        )
        return False

    return check_amp


def _on_xpu(method: Callable[..., Any]) -> Callable[[Any, Callable[..., Any]], Callable[..., Any]]:
    """Make a replacement that calls a method of ours for a trainer on an XPU, and Ultralytics' own otherwise."""

    def replacement(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def choose(self: Any, *args: Any, **kwargs: Any) -> Any:
            return (method if self.device.type == "xpu" else original)(self, *args, **kwargs)

        return choose

    return replacement


def _get_memory(self: Any, fraction: bool = False) -> float:
    used, total = manager().hook.xpu_memory(device=devices.info(self.device.index or 0))
    return float(used / total if fraction else used / 2**30)


def _clear_memory(self: Any, threshold: float | None = None) -> None:
    if threshold is None or _get_memory(self, fraction=True) > threshold:
        torch.xpu.empty_cache()


def _profile_time(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def time(self: Any) -> Any:
        """Wait for the XPU before looking at the clock."""
        if str(getattr(self, "device", "")).startswith("xpu"):
            torch.xpu.synchronize(self.device)
        return original(self)

    return time


def knows_named_precisions() -> bool:
    """Whether this Ultralytics takes `amp="bf16"` and the like, as it does since 8.4.132 or so."""
    from ultralytics.cfg import get_cfg

    try:
        return bool(get_cfg(overrides={"amp": "fp32"}).amp == "fp32")
    except (TypeError, ValueError):
        return False


def name_every_device(trainer: Any) -> None:
    """Name all of a run's XPUs in its arguments again: from 8.3.130 to 8.4.86 only the first is left there.

    Args:
        trainer: A trainer of ours, just made.
    """
    run: Run = trainer.xpu
    trainer.args.device = run.device_string
    if hasattr(trainer, "world_size") and not knows_accelerators():  # since 8.3.200 it is computed there and then
        trainer.world_size = len(run.indices)
        trainer.ddp = trainer.world_size > 1 and "LOCAL_RANK" not in os.environ


def setup_ddp(trainer: Any) -> None:
    """Do for the XPUs of a DDP run what `BaseTrainer._setup_ddp` does for CUDA devices.

    Args:
        trainer: A trainer of ours, in a DDP worker.

    Raises:
        DeviceError: The run's XPUs aren't the first ones; here a worker's rank is its device's index.
    """
    run: Run = trainer.xpu
    if run.indices != tuple(range(len(run.indices))):
        from ultralytics import __version__

        first = ",".join(map(str, range(len(run.indices))))
        raise DeviceError(
            f"Asked for {run.device_string}, but Ultralytics {__version__} trains on several devices only if they are "
            f"the first ones. Use device='xpu:{first}', hide the others with ZE_AFFINITY_MASK, or install "
            "ultralytics>=8.4.111.",
            requested=run.device_string,
            seen=devices.describe(),
        )
    rank = int(os.environ["RANK"])
    torch.xpu.set_device(rank)
    trainer.device = torch.device("xpu", rank)
    torch.distributed.init_process_group("xccl", timeout=timedelta(hours=3), rank=rank, world_size=len(run.indices))


def _torch_with_cuda_devices_as_xpu(run: Any, original: Any) -> Any:
    """Return a stand-in for the module `torch`, for one module whose every `torch.device("cuda", …)` means an XPU."""

    def device(kind: str, *index: int) -> torch.device:
        return torch.device("xpu" if kind == "cuda" else kind, *index)

    return SimpleNamespace(**{**vars(original), "device": device, "cuda": torch.xpu})


ROWS = [
    Row(
        target="ultralytics.utils.torch_utils:autocast",
        why="a trainer that isn't ours would compute in float32 on an XPU whatever `amp` says (Lightning#21982)",
        source="ultralytics/utils/torch_utils.py",
        needed=_needed,
        after="ultralytics.utils.torch_utils",
        replacement=_autocast,
    ),
    Row(
        target="ultralytics.utils.checks:check_amp",
        why="from 8.3.60 to 8.4.110 it asks CUDA for the name of an XPU, and fails",
        source="ultralytics/utils/checks.py",
        needed=_needed,
        after="ultralytics.utils.torch_utils",
        replacement=_check_amp,
    ),
    Row(
        target="ultralytics.engine.trainer:BaseTrainer._get_memory",
        why="from 8.3.100 to 8.4.110 it asks CUDA for the properties of an XPU at the end of every epoch, and fails",
        source="ultralytics/engine/trainer.py",
        needed=_needed,
        after="ultralytics.utils.torch_utils",
        replacement=_on_xpu(_get_memory),
        everywhere=False,
    ),
    Row(
        target="ultralytics.engine.trainer:BaseTrainer._clear_memory",
        why="it clears CUDA's cache instead",
        source="ultralytics/engine/trainer.py",
        needed=_needed,
        after="ultralytics.utils.torch_utils",
        replacement=_on_xpu(_clear_memory),
        everywhere=False,
    ),
    Row(
        target="ultralytics.utils.ops:Profile.time",
        why="it doesn't wait for an XPU, so that the speeds which it prints are wrong",
        source="ultralytics/utils/ops.py",
        needed=_needed,
        after="ultralytics.utils.torch_utils",
        replacement=_profile_time,
        everywhere=False,
    ),
]

RUN_ROWS = [
    Row(
        target="ultralytics.engine.validator:torch",
        why="from 8.3.220 to 8.4.110 a DDP run's final validation asks for a CUDA device",
        source="ultralytics/engine/validator.py",
        needed=lambda run, original: len(run.indices) > 1 and not knows_accelerators(),
        replacement=_torch_with_cuda_devices_as_xpu,
        everywhere=False,
    ),
]
