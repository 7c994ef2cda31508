"""A run computes in bf16 where the device has matrix units, else in fp16, else in fp32; validation as training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..devices import DeviceInfo
from ..hookspecs import hookimpl
from ..patches import Patch, applied, patch
from ..run import Precision, Run
from ..versions import halves_the_averaged_model

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


@patch(
    "ultralytics.utils.torch_utils:autocast",
    why="it refuses bf16 on every device but CUDA and takes fp16 there; before 8.4.111 it means CUDA's autocast",
    source="ultralytics/utils/torch_utils.py, autocast: 'bfloat16 autocast requires CUDA …'; Lightning#21982",
)
def autocast(run: Run, original: Callable[..., Any], enabled: bool | torch.dtype, device: str = "xpu") -> Any:
    """Enter the run's autocast; before 8.4.111 Ultralytics asks for CUDA's by default."""
    return original(enabled, device) if str(device).startswith(("cpu", "mps")) else run.autocast(bool(enabled))


@patch(
    "ultralytics.nn.tasks:BaseModel.forward",
    why="validation would run in fp16 though the run computes in bf16, and can overflow",
    source="ultralytics/engine/validator.py, BaseValidator.__call__",
)
def forward(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a model in the run's precision; each weight is used once, so that no rounded copy is worth keeping."""
    with torch.amp.autocast("xpu", dtype=run.precision.dtype, cache_enabled=False):
        return original(self, *args, **kwargs)


@patch("ultralytics.nn.tasks:BaseModel.half", why="the best weights would be validated in fp16, and can overflow")
def half(run: Run, original: Callable[..., Any], self: Any) -> Any:
    """Round a model's weights as autocast rounds them in every forward; what computes in float32 stays in it."""
    kept = {part for module in self.modules() if type(module).__name__ in _IN_FLOAT32 for part in module.modules()}
    for module in self.modules():
        if isinstance(module, _AUTOCAST) and module not in kept:
            module.to(run.precision.dtype)
    return self


_AUTOCAST = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
_IN_FLOAT32 = ("DFL", "RTDETRDecoder")  # they give coordinates


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Autocast in the run's precision."""
    return [autocast] if trainer.xpu.precision.dtype is not None else []


@hookimpl
@contextmanager
def xpu_around_validation(trainer: Any) -> Iterator[None]:
    """Validate in the run's own precision.

    Ultralytics validates in fp16 whatever the training was: it autocasts to it, before 8.4.60 or so it halves the
    averaged model itself, and it halves the best weights in the end. float16 has 5 exponent bits to bfloat16's 8, so
    what a bf16 run learnt can overflow there. Images stay in fp16, which holds what bytes can say.
    """
    from ultralytics.nn.tasks import BaseModel

    run: Run = trainer.xpu
    if run.precision.name != "bf16":
        yield
    elif isinstance(trainer.ema and trainer.ema.ema, BaseModel) and not halves_the_averaged_model():
        with applied([forward, half], run):
            yield
    else:
        with _not_halved(trainer), applied([forward], run):
            yield


@contextmanager
def _not_halved(trainer: Any) -> Iterator[None]:
    """Validate a model, and images, in float32, but for what autocasts."""
    amp, trainer.amp = trainer.amp, False  # which is what the validator halves by
    args = trainer.validator.args
    before = {name: getattr(args, name) for name in ("half", "quantize") if hasattr(args, name)}
    for name, off in (("half", False), ("quantize", None)):
        if name in before:
            setattr(args, name, off)
    try:
        yield
    finally:
        trainer.amp = amp
        for name, value in before.items():
            setattr(args, name, value)
