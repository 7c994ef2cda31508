"""Count batch normalisation's batches on the host, where a count costs no kernel; nothing reads it on the device."""

from __future__ import annotations

from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..run import Run
from ..transfer import to_host

__all__: list[str] = []

HOST_COUNTERS = Option("host_counters", True, "batch normalisation counts its batches on the host", measured=(False,))


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [HOST_COUNTERS]


@hookimpl
def xpu_prepare_model(trainer: Any) -> None:
    """Move `num_batches_tracked` to the host, where a YOLO11n's 81 cost no launches.

    With `momentum` given, as in every Ultralytics model, PyTorch counts and never uses the count. DDP and a compiled
    model want all of a module's buffers on one device.
    """
    run: Run = trainer.xpu
    if not run.options[HOST_COUNTERS] or run.world_size > 1 or getattr(trainer.args, "compile", False):
        return
    counting = {
        module: module.num_batches_tracked
        for module in trainer.model.modules()
        if isinstance(module, torch.nn.modules.batchnorm._NormBase)
        and module.momentum is not None
        and module.num_batches_tracked is not None
    }
    for module, counter in zip(counting, to_host(list(counting.values())), strict=True):
        module.num_batches_tracked = counter.clone()
