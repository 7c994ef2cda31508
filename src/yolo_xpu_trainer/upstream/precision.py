"""Rows for mixed precision: Ultralytics autocasts an XPU to fp16 only, and checks AMP with weights from the net."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..amp import check
from ..run import Run
from .rows import Row

__all__ = ["ROWS", "VALIDATION_ROWS"]


def _autocast(run: Run, original: Any) -> Any:
    def autocast(enabled: bool | torch.dtype, device: str = "xpu") -> Any:
        """Enter the run's autocast; before 8.4.111 Ultralytics asks for CUDA's by default."""
        return original(enabled, device) if str(device).startswith(("cpu", "mps")) else run.autocast(bool(enabled))

    return autocast


def _forward(run: Run, original: Any) -> Any:
    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a model in the run's precision."""
        with run.autocast():
            return original(self, *args, **kwargs)

    return forward


ROWS = [
    Row(
        target="ultralytics.utils.torch_utils:autocast",
        why="it refuses bf16 on every device but CUDA and takes fp16 there; before 8.4.111 it means CUDA's autocast",
        source="ultralytics/utils/torch_utils.py, autocast: 'bfloat16 autocast requires CUDA …'; Lightning#21982",
        needed=lambda run, original: run.precision.dtype is not None,
        replacement=_autocast,
    ),
    Row(
        target="ultralytics.utils.checks:check_amp",
        why="it downloads another model's weights to check with",
        source="ultralytics/utils/checks.py, check_amp",
        needed=lambda run, original: True,
        replacement=lambda run, original: lambda model: check(run, model),
    ),
]

VALIDATION_ROWS = [
    Row(
        target="ultralytics.nn.tasks:BaseModel.forward",
        why="validation would run in fp16 though the run computes in bf16, and can overflow",
        source="ultralytics/engine/validator.py, BaseValidator.__call__",
        needed=lambda run, original: run.precision.name == "bf16",
        replacement=_forward,
        everywhere=False,
    )
]
