"""Coordinates stay in float32 in a bf16 run.

bfloat16 has 8 significant bits: between 256 and 512 pixels it can only say every second one. Ultralytics decodes boxes,
and computes its losses on them, in whatever dtype the head's convolutions gave, which is fine for float16 (11 bits).
With bf16 it moved the boxes of a YOLO11n at 640 pixels by 0.7 pixels on average and 3.9 at worst, against 0.06 and 0.9
with these patches (tests/runs/test_numerics.py); the convolutions stay in bf16.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from ..hookspecs import hookimpl
from ..patches import Patch, patch
from ..run import Run

__all__: list[str] = []

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

_FEATURES = "feats"  # of a head's output: Ultralytics takes their shapes only


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Patch every decoding and loss method that this Ultralytics has, in a bf16 run."""
    return patches() if trainer.xpu.precision.name == "bf16" else []


def patches() -> list[Patch]:
    """Return a patch for every decoding and loss method that this Ultralytics has."""
    found: list[Patch] = []
    for module_name, method, why in _SEAMS:
        module = importlib.import_module(module_name)
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module_name and method in vars(value):
                found.append(_in_float32(f"{module_name}:{name}.{method}", why))
    module_name, name, why = _RTDETR
    return [*found, _in_float32(f"{module_name}:{name}.forward", why), make_anchors]


def _in_float32(target: str, why: str) -> Patch:
    @patch(target, why=why)
    def method(run: Run, original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if run.precision.name != "bf16":  # the check of mixed precision decided against it
            return original(self, *args, **kwargs)
        widened = _widened if type(self).__module__.partition(".")[0] == "ultralytics" else _all_widened
        with run.autocast(enabled=False):
            return original(self, *map(widened, args), **{key: widened(value) for key, value in kwargs.items()})

    return method


class _Float32(dict[Any, Any]):
    """A dict whose bfloat16 tensors are in float32 wherever they are read, but for feature maps.

    They are widened when they are read, which is by way of `__getitem__` whatever reads, so that no copy lives longer
    than its reader has use for it.
    """

    get, items, values, pop = Mapping.get, Mapping.items, Mapping.values, MutableMapping.pop  # type: ignore[assignment]

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return value if key == _FEATURES else _widened(value)

    def __iter__(self) -> Iterator[Any]:
        return super().__iter__()  # that there is one makes `dict(…)` and `{**…}` go by way of __getitem__


def _widened(value: Any) -> Any:
    """Return a nested value with its bfloat16 tensors in float32; one without any as it is, for what is noted in it."""
    if not _has_bf16(value):
        return value

    def widened(leaf: Any) -> Any:
        return _Float32(leaf) if type(leaf) is dict else leaf.float() if _is_bf16(leaf) else leaf

    return tree_map(widened, value, is_leaf=lambda v: type(v) is dict)


def _all_widened(value: Any) -> Any:
    """Return a nested value with its bfloat16 tensors in float32, in plain containers: users' code may change them."""
    return tree_map(lambda leaf: leaf.float() if _is_bf16(leaf) else leaf, value) if _has_bf16(value) else value


def _has_bf16(value: Any) -> bool:
    return any(_is_bf16(leaf) for leaf in tree_leaves(value))


@patch("ultralytics.utils.tal:make_anchors", why="anchors would have the dtype of the feature maps, whose shapes count")
def make_anchors(run: Run, original: Any, feats: Any, *args: Any, **kwargs: Any) -> Any:
    """Make anchors in float32 of bfloat16 feature maps, without a copy of them."""
    if run.precision.name == "bf16" and isinstance(feats, list):
        feats = [f.new_empty(1, dtype=torch.float32).expand(f.shape) if _is_bf16(f) else f for f in feats]
    return original(feats, *args, **kwargs)


def _is_bf16(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16
