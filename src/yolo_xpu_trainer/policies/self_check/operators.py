"""The operators that every training leans on, whatever policies do, in float32 and integers.

Shapes are those of a detector where a fault depends on them, such as 64 × 8400 for `topk`, and small otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from ...devices import empty_cache
from ...numerics import Check, Given, compared
from ...numerics.cases import (
    Computation,
    attention,
    batch_norm,
    cat_and_split,
    convolution,
    of_features,
    pooled,
    products,
    stepped,
)
from ...own_code import source_of

__all__ = ["checks"]

_ROUNDING = 1e-3  # of the largest number: far above float32's rounding in any order, far below a fault's

_TRUE = (0, 1, 100, 600, 1680)
"""True elements of a foreground mask over 16 images, from none to 105 an image."""

_POSITIONS = (324, 400, 625)
"""Positions that attention is between, in images of 576, 640 and 800 pixels."""

_TOPK = (
    "PyTorch 2.13 was seen to do so (vllm-xpu-kernels#473), 2.12 and 2.14 weren't: install one of these. Targets are "
    "assigned to anchors by it."
)
_SMALL_TOPK = (
    "A nightly build was seen to take the first of eight for the largest (intel-xpu-backend-for-triton#7458). Targets "
    "are assigned to anchors by it."
)
_NONZERO = (
    "PyTorch 2.13 with driver 26.05 was seen to do so, and was right with driver 26.22 and with PyTorch 2.12 "
    "(torch-xpu-ops#4396): install one of these; PyTorch 2.12 where there are several GPUs, which the same user "
    "couldn't use with that driver (compute-runtime#922, #953). Losses find their foreground by it."
)

_SOFTMAX = (
    "An Arc Pro B70 was seen to do so with rows a little longer than a power of two, and another one wasn't, with a "
    "build of PyTorch 2.14 (torch-xpu-ops#4772): install 2.14 or later, and the newest driver. Attention leans on it."
)


def _uses_attention_of_transformers(trainer: Any) -> bool:
    """Whether a trainer is one of RT-DETR's, whose decoder samples features at points."""
    return any("rtdetr" in kind.__module__ for kind in type(trainer).__mro__)


_OF_TRANSFORMERS: dict[str, Any] = {"needed": _uses_attention_of_transformers, "whose": "Trainings of RT-DETR"}


def _may_use(*optimizers: str) -> Callable[[Any], bool]:
    """Return whether a trainer may use one of some optimizers, which `auto` chooses among."""

    def needed(trainer: Any) -> bool:
        asked = str(getattr(trainer.args, "optimizer", "auto")).lower()
        return asked in optimizers or asked not in _OPTIMIZERS

    return needed


_OPTIMIZERS = {"adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "sgd", "musgd"}


def _layer_norm(given: Given) -> list[torch.Tensor]:
    x, weight = given.normal(8, 100, 64, grad=True), given.normal(64, grad=True)
    return given.with_gradients(functional.gelu(functional.layer_norm(x, (64,), weight)), x, weight)


def _grid_sample(given: Given) -> list[torch.Tensor]:
    features, grid = given.normal(8, 32, 20, 20, grad=True), given.normal(8, 100, 4, 2).mul(0.5).requires_grad_()
    output = functional.grid_sample(features, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return given.with_gradients(output, features, grid)


def _topk(given: Given) -> list[torch.Tensor]:
    values, indices = given.orders(64, 8400).topk(10, dim=-1, largest=True)
    return [values, indices]


def _few(given: Given) -> list[torch.Tensor]:
    """Find the largest of few numbers: of the anchors of a small image, and of a row's classes."""
    scores = given.orders(16, 8)
    return [*given.orders(64, 84).topk(10), *scores.topk(1), *scores[:1].topk(1)]


def _sorted(given: Given) -> list[torch.Tensor]:
    scores = given.orders(4, 8400)
    return [*scores.sort(1, descending=True), scores.argsort(dim=1, stable=True), *scores.max(1), scores.argmin(1)]


def _masks(given: Given) -> Iterator[torch.Tensor]:
    return (given.mask(true, 16, 8400) for true in _TRUE)


def _nonzero(given: Given) -> list[torch.Tensor]:
    return [mask.nonzero() for mask in _masks(given)]


def _selected(given: Given) -> list[torch.Tensor]:
    values = given.orders(16, 8400)
    return [selected for mask in _masks(given) for selected in (values[mask], values.masked_select(mask))]


def _assigned(given: Given) -> Iterator[torch.Tensor]:
    scores = given.orders(16, 8400)
    for mask in _masks(given):
        values = scores.clone()
        values[mask] = -1.0
        yield values
        yield values.masked_fill(mask, 2.0)
        yield torch.where(mask, values, values.new_tensor(3.0))
        yield mask.sum()
        yield mask.any(1)


def _indexed_gradient(given: Given) -> list[torch.Tensor]:
    values = given.normal(4, 840, 16, grad=True)
    found = values[given.mask(100, 4, 840)]
    return given.with_gradients(found, values)


def _unique(given: Given) -> Iterable[torch.Tensor]:
    images = given.integers(16, 600).float()
    return torch.unique(images, return_counts=True)  # type: ignore[no-any-return,no-untyped-call]


def _cumulative(given: Given) -> list[torch.Tensor]:
    counts = given.integers(3, 64, 2100)
    return [counts.cumsum(0), counts.cumsum(1), counts.flatten().cumsum(0), counts.float().cumsum(1)]


def _scattered(given: Given) -> list[torch.Tensor]:
    where, ones = given.integers(8400, 16, 13), torch.ones(16, 13, device=given.device)
    counts = torch.zeros(16, 8400, device=given.device, dtype=torch.int32).scatter_add_(1, where, ones.int())
    added = torch.zeros(8400, 4, device=given.device).index_add_(0, where[0], given.normal(13, 4))
    return [counts, torch.zeros(16, 8400, device=given.device).scatter_(1, where, ones), added.gather(0, where[:, :4])]


def _losses(given: Given) -> list[torch.Tensor]:
    logits, targets = given.normal(4, 840, 20, grad=True), given.normal(4, 840, 20).sigmoid()
    boxes = given.normal(4, 840, 16, grad=True)
    labels = given.integers(16, 4, 840)
    return [
        *given.with_gradients(functional.binary_cross_entropy_with_logits(logits, targets, reduction="none"), logits),
        *given.with_gradients(functional.cross_entropy(boxes.view(-1, 16), labels.view(-1), reduction="none"), boxes),
        *given.with_gradients(boxes.view(-1, 4, 4).softmax(-1).matmul(torch.arange(4.0, device=given.device)), boxes),
        *given.with_gradients(torch.atan(boxes).clamp(-1, 1) * boxes.exp().log1p(), boxes),
    ]


def _softmax(given: Given) -> Iterator[torch.Tensor]:
    for n in _POSITIONS:
        scores = given.normal(2, n, n, grad=True)
        yield from given.with_gradients((scores * 5).softmax(-1), scores)


def _averaged(given: Given) -> list[torch.Tensor]:
    """Move averaged weights as Ultralytics does."""
    weights, others = ([given.normal(n) for n in (3, 1000, 70000)] for _ in range(2))
    torch._foreach_lerp_(weights, others, 0.1)
    return weights


def _lists(given: Given) -> list[torch.Tensor]:
    """Compute what clipping the gradients does with all of them at once, and averaging on an older Ultralytics."""
    weights, others = ([given.normal(n) for n in (3, 1000, 70000)] for _ in range(2))
    torch._foreach_mul_(others, torch.full((), 0.5, device=given.device))
    torch._foreach_add_(weights, torch._foreach_mul(others, 0.5))
    return [*weights, *others, *torch._foreach_norm(weights)]


def _copies(given: Given) -> list[torch.Tensor]:
    parts = [given.integers(256, n).byte() for n in (1, 700, 4096, 300_000)]
    joined = torch.cat(parts)
    there = torch.empty_like(joined).copy_(joined)
    starts = [0, *torch.tensor([len(part) for part in parts]).cumsum(0).tolist()]
    return [there.cpu()[a:b].to(given.device) for a, b in pairwise(starts)]


def _emptied(given: Given) -> list[torch.Tensor]:
    values = given.normal(64, 4096)
    if given.device.type == "cpu":
        return [values * 3]
    torch.xpu.synchronize(given.device)  # nothing else may be pending
    tripled = values * 3
    empty_cache(given.device.index, wait=False)
    return [tripled]


def _exactly(operator: str, compute: Computation, dtype: torch.dtype, **more: Any) -> Check:
    return Check(operator, dtype, compared(compute, exact=True), 0, "share", **more)


def _nearly(operator: str, compute: Computation, **more: Any) -> Check:
    return Check(operator, torch.float32, compared(compute), _ROUNDING, **more)


_CHECKS: list[Check] = [
    _nearly("convolution 1×1", convolution(1)),
    _nearly("convolution 1×1 with bias", convolution(1, bias=True)),
    _nearly("convolution 3×3", convolution(3, padding=1)),
    _nearly("convolution 3×3, stride 2", convolution(3, padding=1, stride=2)),
    _nearly("convolution 3×3, stride 2, of an image", convolution(3, padding=1, stride=2, shape=(2, 3, 64, 64))),
    _nearly("convolution 3×3, depth-wise", convolution(3, padding=1, groups=16)),
    _nearly("convolution 3×3, 4 groups", convolution(3, padding=1, groups=4)),
    _nearly("convolution 3×3 of one channel", convolution(3, padding=1, shape=(2, 1, 8, 8))),
    _nearly("convolution 3×3 of one pixel", convolution(3, padding=1, shape=(8, 16, 1, 1))),
    _nearly("convolution 2×2, transposed", convolution(2, transposed=True, stride=2)),
    _nearly("batch norm", batch_norm),
    _nearly("max-pool 5×5", pooled(5, 1)),
    _nearly("max-pool 3×3, stride 2", pooled(3, 2)),
    _nearly("average pool", of_features(lambda x: functional.adaptive_avg_pool2d(x, 1))),
    _nearly("upsampling, nearest", of_features(lambda x: functional.interpolate(x, scale_factor=2.0, mode="nearest"))),
    _nearly("upsampling, bilinear", of_features(lambda x: functional.interpolate(x, size=(33, 47), mode="bilinear"))),
    _nearly("SiLU", of_features(functional.silu)),
    _nearly("sigmoid", of_features(torch.sigmoid)),
    _nearly("cat and split", cat_and_split),
    _nearly("matrix products", products),
    _nearly("attention", attention),
    _nearly("layer norm and GELU", _layer_norm, **_OF_TRANSFORMERS),
    _nearly("grid_sample", _grid_sample, **_OF_TRANSFORMERS),
    _nearly("losses", _losses),
    _nearly(f"softmax of {', '.join(map(str, _POSITIONS))} numbers", _softmax, advice=_SOFTMAX),
    _exactly("topk(10) of 64×8400", _topk, torch.float32, advice=_TOPK),
    _exactly("topk(10) of 64×84, topk(1) of 16×8", _few, torch.float32, advice=_SMALL_TOPK),
    _exactly("sort, argsort, max, argmin", _sorted, torch.float32),
    _exactly("nonzero", _nonzero, torch.bool, advice=_NONZERO),
    _exactly("x[mask], masked_select", _selected, torch.bool, advice=_NONZERO),
    _exactly("x[mask] = y, where, any, sum", _assigned, torch.bool),
    _nearly("x[mask], its gradient", _indexed_gradient, advice=_NONZERO),
    _exactly("unique", _unique, torch.float32),
    _exactly("cumsum", _cumulative, torch.int64),
    _nearly("scatter_add, index_add, gather", _scattered),
    _nearly("_foreach_mul, _foreach_add_, _foreach_norm", _lists),
    _nearly("AdamW", stepped(torch.optim.AdamW, fused=False), needed=_may_use("adamw", "adam")),
    _nearly("SGD", stepped(torch.optim.SGD, fused=False, momentum=0.9, nesterov=True), needed=_may_use("sgd")),
    _exactly("copies", _copies, torch.uint8),
    _exactly(
        "results pending at empty_cache",
        _emptied,
        torch.float32,
        instead="The device is waited for before its cached memory is given back",
    ),
]
_AVERAGING = _nearly("_foreach_lerp_", _averaged)


def checks() -> list[Check]:
    """Return the checks of what trainings lean on with the Ultralytics that is installed."""
    from ultralytics.utils.torch_utils import ModelEMA

    return _CHECKS + [_AVERAGING] * _averages_by_lerp(ModelEMA.update)


@functools.cache
def _averages_by_lerp(update: Any) -> bool:
    """Whether weights are averaged by `_foreach_lerp_`, as older Ultralytics don't."""
    return "_foreach_lerp_" in source_of(update)
