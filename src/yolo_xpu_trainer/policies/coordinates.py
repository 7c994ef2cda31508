"""Rows that keep coordinates in float32 in a bf16 run.

bfloat16 has 8 significant bits: between 256 and 512 pixels it can only say every second one. Ultralytics decodes boxes,
and computes its losses on them, in whatever dtype the head's convolutions gave, which is fine for float16 (11 bits).
With bf16 it moved the boxes of a YOLO11n at 640 pixels by 0.7 pixels on average and 3.9 at worst, against 0.06 and 0.9
with these rows (tests/test_numerics.py); the convolutions stay in bf16.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from ..run import Run
from .rows import Row

__all__ = ["rows"]

# Where a head turns numbers into coordinates, and where losses compare them: module, method, why.
_SEAMS = (
    ("ultralytics.nn.modules.head", "_inference", "box coordinates would be rounded to bf16's 8 bits"),
    ("ultralytics.utils.loss", "__call__", "the losses would compare coordinates rounded to bf16's 8 bits"),
    ("ultralytics.models.utils.loss", "forward", "the losses would compare coordinates rounded to bf16's 8 bits"),
)
_RTDETR = (
    "ultralytics.nn.modules.head",
    "RTDETRDecoder",
    "its layers refine box coordinates, 1/256 of the image apart",
)


def rows() -> list[Row]:
    """Return a row for every decoding and loss method that this Ultralytics has."""
    found = []
    for module_name, method, why in _SEAMS:
        module = importlib.import_module(module_name)
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module_name and method in vars(value):
                found.append(_row(f"{module_name}:{name}.{method}", why))
    module_name, name, why = _RTDETR
    return [*found, _row(f"{module_name}:{name}.forward", why)]


def _row(target: str, why: str) -> Row:
    return Row(
        target=target,
        why=why,
        source=f"{target.partition(':')[0].replace('.', '/')}.py",
        needed=lambda run, original: run.precision.name == "bf16",
        replacement=_in_float32,
        everywhere=False,
    )


def _in_float32(run: Run, original: Any) -> Any:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with run.autocast(enabled=False):
            return original(self, *(_widened(a) for a in args), **{k: _widened(v) for k, v in kwargs.items()})

    return method


def _widened(value: Any) -> Any:
    """Return a nested value with its bfloat16 tensors in float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype is torch.bfloat16 else value
    if isinstance(value, dict):
        return {k: _widened(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_widened(v) for v in value)
    return value
