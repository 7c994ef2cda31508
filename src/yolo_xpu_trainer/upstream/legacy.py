"""Ultralytics before 8.4.111 asks `torch.cuda` whatever the device is: what works on an XPU all the same."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from .. import devices
from ..errors import DeviceError
from ..own_code import source_of
from ..patches import like, patch, stand_in
from ..plugins import hooks
from ..run import Precision, Run
from ..versions import knows_accelerators, needs_accelerators

__all__ = ["PATCHES", "RUN_PATCHES", "check_order", "name_every_device"]

_LOGGER = logging.getLogger("ultralytics")
_PROBED = "ultralytics.utils.torch_utils"


def _no_scaler_needed() -> Precision | None:
    """Return the precision of a trainer that isn't ours: bf16, which needs no scaler, or None for float32.

    Its scaler is made for CUDA and silently disabled on an XPU; float16 without one gives NaN losses (IPEX#814).
    """
    if torch.cuda.is_available() or not devices.count():
        return None
    device = devices.info(torch.xpu.current_device())
    precision: Precision | None = hooks().xpu_precision(device=device, requested=True)
    return precision if precision and precision.name == "bf16" else None


@patch(
    "ultralytics.utils.torch_utils:autocast",
    why="a trainer that isn't ours would compute in float32 on an XPU whatever `amp` says",
    source="ultralytics/utils/torch_utils.py; Lightning#21982",
    needed=needs_accelerators,
    after=_PROBED,
)
def autocast(original: Callable[..., Any], enabled: bool, device: str = "cuda") -> Any:
    """Autocast the XPU where Ultralytics asks for CUDA."""
    precision = _no_scaler_needed() if device == "cuda" else None
    return original(enabled, device) if precision is None else torch.amp.autocast("xpu", precision.dtype, enabled)


@patch(
    "ultralytics.utils.checks:check_amp",
    why="from 8.3.60 to 8.4.110 it asks CUDA for the name of an XPU, and fails",
    needed=needs_accelerators,
    after=_PROBED,
)
def check_amp(original: Callable[..., Any], model: torch.nn.Module) -> bool:
    """Allow AMP on an XPU where it needs no scaler; ask CUDA about CUDA only."""
    if next(model.parameters()).device.type != "xpu":
        return bool(original(model))
    if _no_scaler_needed() is not None:
        return True
    _LOGGER.warning(
        "XPU: training in fp32, because fp16 needs a gradient scaler and this trainer's works on CUDA only. A trainer "
        "of yolo-xpu-trainer trains in fp16 here."
    )
    return False


@patch(
    "ultralytics.utils.ops:Profile.time",
    why="it doesn't wait for an XPU, so the speeds that it prints are wrong",
    needed=needs_accelerators,
    after=_PROBED,
)
def profile_time(original: Callable[..., Any], self: Any) -> Any:
    """Wait for the XPU before looking at the clock."""
    if str(getattr(self, "device", "")).startswith("xpu"):
        torch.xpu.synchronize(self.device)
    return original(self)


@stand_in(
    "ultralytics.engine.validator:torch",
    why="from 8.3.220 to 8.4.110 a DDP run's final validation asks for a CUDA device",
    needed=needs_accelerators,
    everywhere=False,
)
def torch_with_cuda_devices_as_xpu(run: Any, original: Any) -> Any:
    """Return a stand-in for the module `torch`, for one module whose every `torch.device("cuda", …)` means an XPU."""

    def device(kind: str, *index: int) -> torch.device:
        return torch.device("xpu", torch.xpu.current_device()) if kind == "cuda" else torch.device(kind, *index)

    return like(original, device=device, cuda=torch.xpu)


def name_every_device(trainer: Any) -> None:
    """Name all of a run's XPUs in its arguments again: from 8.3.130 to 8.4.86 only the first is left there.

    Args:
        trainer: A trainer of ours, just made.
    """
    run: Run = trainer.xpu
    trainer.args.device = run.device_string
    if hasattr(trainer, "world_size") and not knows_accelerators():  # since 8.3.200 it is computed there and then
        trainer.world_size = run.world_size
        trainer.ddp = trainer.world_size > 1 and "LOCAL_RANK" not in os.environ


def check_order(trainer: Any) -> None:
    """See that the number of a DDP worker is that of its device.

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


@patch(
    "torch.nn.parallel:DistributedDataParallel.__init__",
    why="a rank's number would be taken for its device's, which it isn't on a second machine",
    needed=needs_accelerators,
    everywhere=False,
)
def ddp_init(original: Callable[..., Any], self: Any, module: Any, *args: Any, **kwargs: Any) -> None:
    """Share a model on the device that it is on."""
    if isinstance(kwargs.get("device_ids"), list):
        kwargs["device_ids"] = [torch.xpu.current_device()]
    original(self, module, *args, **kwargs)


def _waits_on_a_device(original: Any) -> bool:
    """Whether ranks wait for each other on a device, whatever the backend, as before 8.3.133."""
    from ultralytics.utils.torch_utils import torch_distributed_zero_first

    source = source_of(inspect.unwrap(torch_distributed_zero_first))
    return "device_ids=" in source and "nccl" not in source


@stand_in(
    "ultralytics.utils.torch_utils:dist",
    why="a rank would wait on the device of its own number, which isn't the run's, or isn't there (ZE_AFFINITY_MASK)",
    source="ultralytics/utils/torch_utils.py; intel/torch-xpu-ops src/xccl/ProcessGroupXCCL.cpp, barrier",
    needed=_waits_on_a_device,
    after=_PROBED,
    everywhere=False,
)
def distributed(run: Any, original: Any) -> Any:
    """Return a stand-in for `torch.distributed`, whose `barrier` leaves the device to XCCL."""

    def barrier(*args: Any, **kwargs: Any) -> Any:
        if original.get_backend() != "nccl":
            kwargs.pop("device_ids", None)
        return original.barrier(*args, **kwargs)

    return like(original, barrier=barrier)


PATCHES = [autocast, check_amp, profile_time, distributed]
RUN_PATCHES = [torch_with_cuda_devices_as_xpu, ddp_init]
