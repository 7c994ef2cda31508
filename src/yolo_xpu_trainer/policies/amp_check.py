"""Mixed precision on an XPU: whether a model bears it, and a loss scaler that needs no float64."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch

from .run import Run

__all__ = ["GradScaler", "check"]

_LOGGER = logging.getLogger("ultralytics")

# Relative distance (RMS), of what enters a model's head, at which something is broken rather than rounded. bfloat16's 8
# bits make 0.25 of it in a YOLO11n with features of ordinary size and 0.5 in a YOLOv10n, float16's 11 bits 0.05; a
# broken kernel makes 1 and more.
_BROKEN = {"bf16": 0.9, "fp16": 0.5}


class _Scale(torch.Tensor):
    """A scale that answers `.double()` in float32: powers of two, as scales are, have exact reciprocals there."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def double(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)  # type: ignore[no-untyped-call]


class GradScaler(torch.amp.GradScaler):
    """A gradient scaler for devices without float64.

    PyTorch's own takes the reciprocal of its scale in float64, which an Arc A card refuses: "Required aspect fp64 is
    not supported on the device" (torch-xpu-ops#1742, pytorch#147731). Its state is that of `torch.amp.GradScaler`.
    """

    def _lazy_init_scale_growth_tracker(self, dev: torch.device) -> None:
        super()._lazy_init_scale_growth_tracker(dev)
        self._scale: torch.Tensor | None
        if self._scale is not None:
            self._scale = self._scale.as_subclass(_Scale)  # type: ignore[no-untyped-call]


def check(run: Run, model: torch.nn.Module) -> bool:
    """Check that a model gives in the run's precision what it gives in float32, and set the run to float32 if not.

    This has the intent of `ultralytics.utils.checks.check_amp`, which downloads another model to look at. A precision
    that the user named is not overruled, as upstream doesn't for "bf16".

    Args:
        run: The run.
        model: The model to be trained, on its device.

    Returns:
        Whether the run may use its precision.
    """
    if run.precision.requested or run.precision.dtype is None:
        return run.precision.dtype is not None
    try:
        distance = _distance(run, model)
    except Exception as error:
        if "DEVICE_LOST" in str(error):
            raise
        _LOGGER.warning(f"XPU: this model can't be called on a plain image, so AMP goes unchecked ({error!r}).")
        return True
    if distance <= _BROKEN[run.precision.name]:
        return True
    _LOGGER.warning(
        f"XPU: this model gives in {run.precision.name} what lies {distance:.2g} from fp32 (relative RMS; up to "
        f"{_BROKEN[run.precision.name]} is accepted), so it is trained in fp32, which is slower. "
        f"amp='{run.precision.name}' insists."
    )
    run.fall_back_to_fp32(f"{run.precision.name} changed this model's outputs")
    return False


def _distance(run: Run, model: torch.nn.Module) -> float:
    """Return how far the run's precision is from float32: in what enters the model's last layer, by relative RMS.

    What comes out of it is asked to be finite only: an RT-DETR's head chooses its queries by rank, and rounding
    reorders them.
    """
    stride = int(max(getattr(model, "stride", torch.tensor([32.0])).max(), 32))
    channels = next((p.shape[1] for p in model.parameters() if p.ndim == 4), 3)
    noise = torch.rand(1, channels, 4 * stride, 4 * stride, generator=torch.Generator().manual_seed(0))
    image = noise.to(run.device.device)
    probe = deepcopy(model).eval()  # a forward caches anchors, in the dtype of the moment
    features: list[torch.Tensor] = []
    head = list(getattr(probe, "model", probe).children())[-1]
    head.register_forward_pre_hook(lambda module, inputs: features.extend(_floats(inputs)))
    with torch.no_grad():
        exact_out = list(_floats(probe(image)))
        exact = features.copy()
        features.clear()
        with run.autocast():
            reduced_out = list(_floats(probe(image)))
    if any(a.isfinite().all() and not b.isfinite().all() for a, b in zip(exact_out, reduced_out, strict=True)):
        return torch.inf
    worst = 0.0
    for a, b in zip(exact, features, strict=True):
        if a.isfinite().all():
            # An untrained model's deep features are 1e-9: flushed to 0 in float16, and of no weight.
            size = a.norm().clamp(min=1e-3 * a.numel() ** 0.5)
            worst = max(worst, float((a - b.float()).norm() / size) if b.isfinite().all() else torch.inf)
    return worst


def _floats(output: object) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors of a nested output, in order."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _floats(value)
