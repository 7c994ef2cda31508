"""Check mixed precision on the model that is trained, instead of on another one that is downloaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..device_errors import is_lost
from ..hookspecs import hookimpl
from ..patches import Patch, patch
from ..run import Run

__all__ = ["check"]

_LOGGER = logging.getLogger("ultralytics")

# Relative distance (RMS), of what enters a model's head, at which something is broken rather than rounded. bfloat16's 8
# bits make 0.25 of it in a YOLO11n with features of ordinary size and 0.5 in a YOLOv10n, float16's 11 bits 0.05; a
# broken kernel makes 1 and more.
_BROKEN = {"bf16": 0.9, "fp16": 0.5}


@patch("ultralytics.utils.checks:check_amp", why="it downloads another model's weights to check with")
def check_amp(run: Run, original: Callable[..., Any], model: torch.nn.Module) -> bool:
    """Check the model at hand."""
    return check(run, model)


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    return [check_amp]


@hookimpl(tryfirst=True)  # what depends on the precision comes after
def xpu_after_setup(trainer: Any) -> None:
    """Follow rank 0 of a DDP run, which found against mixed precision and told the others."""
    run: Run = trainer.xpu
    if run.precision.dtype and not trainer.amp:
        run.fall_back_to_fp32("this run's check of mixed precision failed")


def check(run: Run, model: torch.nn.Module) -> bool:
    """Check that a model gives in the run's precision what it gives in float32, and set the run to float32 if not.

    The intent is that of `ultralytics.utils.checks.check_amp`, which downloads another model to look at. A precision
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
        if is_lost(error):
            raise
        _LOGGER.warning(f"XPU: AMP is not checked, because this model can't be called on a plain image: {error!r}")
        return True
    if distance <= _BROKEN[run.precision.name]:
        return True
    _LOGGER.warning(
        f"XPU: {run.precision.name} outputs differ from fp32 by {distance:.2g} (relative RMS, limit "
        f"{_BROKEN[run.precision.name]}); training in fp32 instead, which is slower. Set "
        f"amp='{run.precision.name}' to override."
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
    probe = _sharing(model).eval()
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


def _sharing(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model with the same weights, whose forward, which caches anchors in the dtype of the moment, is its own.

    The weights take no memory a second time, and may be shared: `eval` changes no buffer.
    """
    shared = {id(tensor): tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    return deepcopy(model, shared)


def _floats(output: object) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors of a nested output, in order."""
    return (leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
