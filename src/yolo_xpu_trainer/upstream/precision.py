"""Rows for mixed precision: Ultralytics autocasts an XPU to fp16 only, and checks AMP with weights from the net."""

from __future__ import annotations

from typing import Any

import torch

from ..amp import check
from ..run import Run
from .rows import Row

__all__ = ["FINAL_EVAL_ROWS", "ROWS"]


def _autocast(run: Run, original: Any) -> Any:
    def autocast(enabled: bool | torch.dtype, device: str = "xpu") -> Any:
        """Enter the run's autocast on an XPU, Ultralytics' own elsewhere."""
        return run.autocast(bool(enabled)) if str(device).startswith("xpu") else original(enabled, device)

    return autocast


def _autocast_always(run: Run, original: Any) -> Any:
    def autocast(enabled: bool | torch.dtype, device: str = "xpu") -> Any:
        """Enter the run's autocast whatever is asked: outside of training, Ultralytics' validator asks for none."""
        return run.autocast() if str(device).startswith("xpu") else original(enabled, device)

    return autocast


def _amp_dtype_differs(run: Run, original: Any) -> bool:
    return run.precision.dtype not in (None, original(True, "xpu").fast_dtype)


ROWS = [
    Row(
        target="ultralytics.utils.torch_utils:autocast",
        why="it refuses bf16 on every device but CUDA and takes fp16 there",
        source="ultralytics/utils/torch_utils.py, autocast: 'bfloat16 autocast requires CUDA …'",
        needed=_amp_dtype_differs,
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

FINAL_EVAL_ROWS = [
    Row(
        target="ultralytics.engine.validator:autocast",
        why="the final validation would run in fp16 though the run computed in bf16, and can overflow",
        source="ultralytics/engine/validator.py, BaseValidator.__call__",
        needed=lambda run, original: run.precision.name == "bf16",
        replacement=_autocast_always,
        everywhere=False,
    )
]
