"""A run computes in bf16 where the device has matrix units, else in fp16, else in fp32; validation as training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map

from ..devices import DeviceInfo
from ..hookspecs import hookimpl
from ..patches import Patch, applied, patch
from ..run import Precision, Run

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


def _after_failure(run: Run, original: Any) -> Callable[..., Any]:
    """Return what is called where `autocast` fails: Ultralytics' own would train in fp16 without a scaler."""

    def autocast(enabled: bool | torch.dtype, device: str = "xpu") -> Any:
        run.fall_back_to_fp32("the policy for mixed precision failed")
        validating = bool(enabled) and not torch.is_grad_enabled()  # on images that Ultralytics has made float16
        return torch.amp.autocast("xpu", torch.float16, enabled=validating)

    return autocast


@patch(
    "ultralytics.utils.torch_utils:autocast",
    why="it refuses bf16 on every device but CUDA and takes fp16 there; before 8.4.111 it means CUDA's autocast",
    source="ultralytics/utils/torch_utils.py, autocast: 'bfloat16 autocast requires CUDA …'; Lightning#21982",
    fallback=_after_failure,
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
    """Run a model in the run's precision; what it gives is in float32.

    The validator computes losses, and users' validators whatever they want, outside of autocast. There bfloat16 doesn't
    go with float32, such as the weights of a `CrossEntropyLoss`, and NumPy doesn't know it.
    """
    with run.autocast():
        return _in_float32(original(self, *args, **kwargs))


@patch(
    "ultralytics.nn.distill_model:DistillationModel.forward",
    why="validation of a model that is distilled would run in fp32, which is slower",
    source="ultralytics/nn/distill_model.py",
    optional=True,
)
def distilled_forward(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a student in the run's precision, which its wrapper calls by another method than `forward`."""
    with run.autocast():
        return _in_float32(original(self, *args, **kwargs))


def _in_float32(output: Any) -> Any:
    return tree_map(lambda v: v.float() if isinstance(v, torch.Tensor) and v.dtype is torch.bfloat16 else v, output)


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
        with applied([forward, distilled_forward], run):
            yield
    finally:
        trainer.amp = amp
        for name, value in before.items():
            setattr(args, name, value)
