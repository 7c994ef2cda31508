"""Compute float32 as IEEE float32, or in tf32 (10 bits of fraction instead of 23) where `xpu_tf32=True` asks for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .. import devices
from ..hookspecs import hookimpl
from ..options import Option
from ..run import Run

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")

TF32 = Option(
    "tf32",
    False,
    "float32 convolutions and matrix products may be computed in tf32: faster, with 10 bits of fraction instead of 23. "
    "By default float32 is IEEE float32, whatever the process had set",
)


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [TF32]


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Set oneDNN's switch for the length of a run, whatever it was, and put it back.

    On an XPU it alone decides, for convolutions (pytorch#137570) and matrix products (pytorch#144240);
    `torch.backends.fp32_precision` and `torch.set_float32_matmul_precision` don't reach it (torch-xpu-ops#4919).
    """
    run: Run = trainer.xpu
    switches: Any = torch.backends.mkldnn
    before = getattr(switches, "allow_tf32", None)  # None too where PyTorch is built without XPU support
    refusal = _refusal(run, before) if run.options[TF32] else ""
    if run.options[TF32] and not run.is_worker:
        if refusal:
            _LOGGER.warning(f"XPU: xpu_tf32=True has no effect: {refusal}. float32 is computed as float32.")
        else:
            _LOGGER.info("XPU: float32 convolutions and matrix products are computed in tf32, as xpu_tf32=True asks")
    if before is None:
        yield
        return
    switches.allow_tf32 = run.options[TF32] and not refusal
    try:
        yield
    finally:
        switches.allow_tf32 = before


def _refusal(run: Run, switch: bool | None) -> str:
    """Return why a run can't compute in tf32, "" where it can."""
    if switch is None:
        return f"PyTorch {torch.__version__} has no tf32 on XPUs"
    lacking = [device for device in map(devices.info, run.indices) if not device.has_tf32]
    return f"{lacking[0]} has no tf32" if lacking else ""
