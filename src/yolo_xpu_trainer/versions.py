"""What the installed Ultralytics can do, found by probing it rather than by its version's number; PyTorch's release."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch

__all__ = [
    "halves_the_averaged_model",
    "knows_accelerators",
    "knows_named_precisions",
    "needs_accelerators",
    "torch_release",
]


def torch_release() -> tuple[int, int]:
    """Return the release of PyTorch, such as (2, 14): how its XPU kernels were built can't be probed."""
    major, minor = re.findall(r"\d+", torch.__version__)[:2]
    return int(major), int(minor)


def knows_accelerators() -> bool:
    """Whether this Ultralytics asks the device's own module of PyTorch, as it does from 8.4.111 on."""
    import ultralytics.utils.torch_utils as torch_utils

    return hasattr(torch_utils, "get_torch_device_backend")


def needs_accelerators(original: Any = None) -> bool:
    """Whether this Ultralytics asks `torch.cuda` whatever the device is, for `Patch.needed`."""
    return not knows_accelerators()


def knows_named_precisions() -> bool:
    """Whether this Ultralytics takes `amp="bf16"` and the like, as it does since 8.4.132 or so."""
    from ultralytics.cfg import get_cfg

    try:
        return bool(get_cfg(overrides={"amp": "fp32"}).amp == "fp32")
    except (TypeError, ValueError):
        return False


def halves_the_averaged_model() -> bool:
    """Whether this Ultralytics validates in training with the averaged model's own weights in fp16: before 8.4.60."""
    from ultralytics.engine.validator import BaseValidator

    try:
        return "model.half()" in inspect.getsource(BaseValidator.__call__)
    except OSError:  # a frozen program has no sources
        return True
