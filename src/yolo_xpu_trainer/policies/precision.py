"""A run computes in bf16 where the device has matrix units, else in fp16, else in fp32; validation as training."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map

from ..devices import DeviceInfo, info
from ..hookspecs import hookimpl
from ..numerics import ANOTHER_PRECISION, SELF_CHECK, Check, Finding, announced, compared
from ..numerics.cases import attention, batch_norm, cat_and_split, convolution, of_features, pooled, products
from ..patches import Patch, applied, is_upstream, patch
from ..plugins import hooks
from ..ranks import CHILD_VARIABLE
from ..recovery import Recovery
from ..run import Precision, Run
from ..versions import halves_the_averaged_model

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")
_LIMITS = {torch.bfloat16: 3e-2, torch.float16: 1e-2}  # of the largest number: some times what rounding makes of it
_LINEAR = (
    "bf16 and fp16 matrix products were seen to be wrong on a B580 with some drivers (torch-xpu-ops#5220): install "
    "another driver."
)
_CHECKS = {
    dtype: [
        Check(operator, dtype, compared(compute, dtype), limit, instead=ANOTHER_PRECISION, advice=advice)
        for operator, compute, advice in (
            ("matrix products", products, _LINEAR),
            ("attention", attention, _LINEAR),
            ("convolution 1×1", convolution(1), ""),
            ("convolution 1×1 with bias", convolution(1, bias=True), ""),
            ("convolution 3×3", convolution(3, padding=1), ""),
            ("convolution 3×3, stride 2", convolution(3, padding=1, stride=2), ""),
            ("convolution 3×3, stride 2, of an image", convolution(3, padding=1, stride=2, shape=(2, 3, 64, 64)), ""),
            ("convolution 3×3, depth-wise", convolution(3, padding=1, groups=16), ""),
            ("convolution 3×3, 4 groups", convolution(3, padding=1, groups=4), ""),
            ("convolution 2×2, transposed", convolution(2, transposed=True, stride=2), ""),
            ("batch norm", batch_norm, ""),
            ("SiLU", of_features(torch.nn.functional.silu), ""),
            ("max-pool 5×5", pooled(5, 1), ""),
            ("max-pool 3×3, stride 2", pooled(3, 2), ""),
            ("upsampling, nearest", of_features(torch.nn.Upsample(scale_factor=2)), ""),
            # A whole scale, as models have: at another one the XPU's kernel computes positions in 16 bits.
            ("upsampling, bilinear", of_features(torch.nn.Upsample(scale_factor=2, mode="bilinear")), ""),
            ("cat and split", cat_and_split, ""),
        )
    ]
    for dtype, limit in _LIMITS.items()
}


@hookimpl
def xpu_numerics() -> list[Check]:
    return [check for checks in _CHECKS.values() for check in checks]


def _wrong(dtype: torch.dtype, device: DeviceInfo, *, chosen: bool = False) -> Finding | None:
    """Return something that a device computes wrongly in a dtype, if there is and was to be looked for.

    Args:
        dtype: The dtype.
        device: The device.
        chosen: Whether the precision stands already, so that the self-check has compared all of it, anew if asked to.
    """
    asked = SELF_CHECK.current()
    if asked is False:
        return None
    anew = asked == "full" and not chosen and CHILD_VARIABLE not in os.environ
    every = [check for checks in hooks(recovery=Recovery()).xpu_numerics() for check in checks]
    wanted = [check for check in every if check.dtype is dtype and check.instead == ANOTHER_PRECISION]
    return next((found for found in announced(wanted, device, anew=anew) if not found.right), None)


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
    found = None
    if device.has_matrix_units and not (found := _wrong(torch.bfloat16, device)):
        return Precision("bf16", "the device has matrix units")
    if found is None and not device.has_fp16:
        return Precision("fp32", "the device has neither matrix units nor float16")
    if device.has_fp16 and not (worse := _wrong(torch.float16, device)):
        reason = f"{found}" if found else "the device has no matrix units, but float16"
        return Precision("fp16", reason)
    return Precision("fp32", f"{found or worse}")


@hookimpl
def xpu_configure(trainer: Any) -> None:
    """Look for what is wrong in a precision that not each device chose: the user named it, or GPUs agreed on it.

    The user is warned; what GPUs agreed on, of which one of them could do more, is given up.
    """
    run: Run = trainer.xpu
    if run.precision.dtype and not run.precision.requested and run.world_size > 1:
        found = next(filter(None, (_wrong(run.precision.dtype, info(i), chosen=True) for i in run.indices)), None)
        seen = str(found or "")
        if run.group is not None:
            seen = next(filter(None, run.group.gather(seen)), "")
        if seen:
            run.fall_back_to_fp32(seen)
    elif run.precision.requested and run.precision.dtype and not run.is_worker:
        for found in filter(None, [_wrong(run.precision.dtype, info(i), chosen=True) for i in run.indices]):
            _LOGGER.warning(
                f"XPU: {run.precision.name} is used, because {run.precision.reason}, but {found}. The model may learn "
                f"nothing. amp=True chooses another precision."
            )


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
    """Run a model in the run's precision; what it gives is in float32, feature maps for Ultralytics' losses in float16.

    The validator computes losses, and users' validators whatever they want, outside of autocast. There bfloat16 doesn't
    go with float32, such as the weights of a `CrossEntropyLoss`, and NumPy doesn't know it. Feature maps are large, and
    Ultralytics takes their shapes only. Each weight is used once, so that no rounded copy is worth keeping.
    """
    with run.autocast(cache_enabled=False):
        return _readable(original(self, *args, **kwargs), _dtype_of_features(self))


@patch(
    "ultralytics.nn.distill_model:DistillationModel.forward",
    why="validation of a model that is distilled would run in fp32, which is slower",
    source="ultralytics/nn/distill_model.py",
    optional=True,
)
def distilled_forward(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a student in the run's precision, which its wrapper calls by another method than `forward`."""
    with run.autocast():
        return _readable(original(self, *args, **kwargs), _dtype_of_features(self))


def _dtype_of_features(model: Any) -> torch.dtype:
    """Return float16 where Ultralytics' own loss gets the feature maps, else float32."""
    makers = (getattr(type(model), name, None) for name in ("init_criterion", "loss"))
    criterion = type(getattr(model, "criterion", None)).__module__.partition(".")[0]
    own = criterion not in ("ultralytics", "builtins") or not all(is_upstream(m) for m in makers if m is not None)
    return torch.float32 if own else torch.float16


def _readable(output: Any, features: torch.dtype, dtype: torch.dtype = torch.float32) -> Any:
    """Return a nested output with its bfloat16 tensors in another dtype, and feature maps in one of their own."""

    def converted(leaf: Any) -> Any:
        if type(leaf) is dict:
            return {key: _readable(v, features, features if key == "feats" else dtype) for key, v in leaf.items()}
        return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.dtype is torch.bfloat16 else leaf

    return tree_map(converted, output, is_leaf=lambda value: type(value) is dict)


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
        with applied([forward, distilled_forward, half], run):
            yield
    else:
        with _not_halved(trainer), applied([forward, distilled_forward], run):
            yield


@contextmanager
def _not_halved(trainer: Any) -> Iterator[None]:
    """Validate a model, and images, in float32, but for what autocasts."""
    amp, trainer.amp = trainer.amp, False  # which is what the validator halves by
    args = getattr(trainer.validator, "args", None)
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
