"""bf16 where the device has matrix units, else fp16, else fp32; in validation as in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..amp import GradScaler
from ..devices import DeviceInfo
from ..hookspecs import hookimpl
from ..run import Precision, Run
from ..upstream import Row, activated, geometry
from ..upstream.precision import ROWS, VALIDATION_ROWS

__all__: list[str] = []


@hookimpl
def xpu_precision(device: DeviceInfo, requested: bool | str) -> Precision:
    """Choose by matrix units.

    Not by `torch.xpu.is_bf16_supported()`, which counts emulation and is true of every XPU, nor by
    `has_bfloat16_conversions`, which is false on Lunar Lake although it has matrix units (ComfyUI#9322). A Meteor Lake
    iGPU has neither (intel-xpu-backend-for-triton#1888) and gets fp16.
    """
    if requested is False:
        return Precision("fp32", "amp=False asks for it", requested=True)
    if requested in ("bf16", "fp16", "fp32"):
        return Precision(requested, f"amp={requested!r} asks for it", requested=True)  # type: ignore[arg-type]
    if device.has_matrix_units:
        return Precision("bf16", "the device has matrix units")
    if device.has_fp16:
        return Precision("fp16", "the device has no matrix units, but float16")
    return Precision("fp32", "the device has neither matrix units nor float16")


@hookimpl
def xpu_upstream_rows() -> list[Row]:
    """Autocast in the run's precision, check it on the model at hand, and keep coordinates in float32."""
    return [*ROWS, *geometry.rows()]


@hookimpl
def xpu_before_resume(trainer: Any) -> None:
    """Give the trainer a scaler that needs no float64; one that does nothing where none is needed."""
    run: Run = trainer.xpu
    if run.precision.dtype and not trainer.amp:  # rank 0 of a DDP run found against it and told the others
        run.fall_back_to_fp32("this run's check of mixed precision failed")
    trainer.scaler = GradScaler("xpu", enabled=run.precision.needs_scaler)
    if run.precision.needs_scaler and (state := run.resumed.get("scaler")):
        trainer.scaler.load_state_dict(state)


@hookimpl
@contextmanager
def xpu_around_validation(trainer: Any) -> Iterator[None]:
    """Validate in the run's own precision.

    Ultralytics validates in fp16 whatever the training was: it autocasts to it, before 8.4.60 or so it halves the
    averaged model itself, and it halves the best weights in the end. float16 has 5 exponent bits to bfloat16's 8, so
    what a bf16 run learnt can overflow there.
    """
    run: Run = trainer.xpu
    if run.precision.name != "bf16":
        yield
        return
    amp, trainer.amp = trainer.amp, False  # which is what the validator halves by
    args = trainer.validator.args
    before = {name: getattr(args, name) for name in ("half", "quantize") if hasattr(args, name)}
    for name, off in (("half", False), ("quantize", None)):
        if name in before:
            setattr(args, name, off)
    try:
        with activated(VALIDATION_ROWS, run):
            yield
    finally:
        trainer.amp = amp
        for name, value in before.items():
            setattr(args, name, value)
