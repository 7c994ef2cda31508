"""What channels_last leans on: convolutions of every kind that a model may have, and that they aren't slower in it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.nn import functional

from ...numerics import Check, Given, compared
from ...numerics.cases import Computation, batch_norm, convolution, pooled

__all__ = ["CHECKS", "checks_of"]

_NCHW = "Training in NCHW"
_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
_SLOWER = 2.0  # times as long, at which reordering isn't made up for by anything; Ultralytics' CUDA users saw 3
_ROUNDS, _TRIALS = 4, 3
_COLOURS = 3  # channels of an image


def _in_channels_last(name: str, compute: Computation, dtype: torch.dtype, instead: str = _NCHW) -> Check:
    operator = f"{name}, channels_last"
    return Check(operator, dtype, compared(compute, dtype), _LIMITS[dtype], instead=instead)


class _InChannelsLast(Given):
    def normal(self, *shape: int, **settings: Any) -> torch.Tensor:
        return super().normal(*shape, **{"layout": torch.channels_last if len(shape) == 4 else None, **settings})


def _batch_norm_and_pool(given: Given) -> list[torch.Tensor]:
    inner = _InChannelsLast(given.device, given.dtype)
    return [*batch_norm(inner), *pooled(5, 1, torch.channels_last)(given)]


def _of(kind: str, kernel: int, instead: str = _NCHW, **settings: Any) -> dict[torch.dtype, Check]:
    compute = convolution(kernel, layout=torch.channels_last, **settings)
    return {dtype: _in_channels_last(f"convolution {kind}", compute, dtype, instead) for dtype in _LIMITS}


_POINTWISE = _of("1×1", 1)
_PLAIN = _of("3×3", 3, padding=1)
_DEPTHWISE = _of("3×3, depth-wise", 3, padding=1, groups=16)
_GROUPED = _of("3×3, 4 groups", 3, padding=1, groups=4)
_ONE_CHANNEL = _of("3×3 of one channel", 3, padding=1, shape=(2, 1, 8, 8))
_TRANSPOSED = _of("2×2, transposed", 2, transposed=True, stride=2)
_STEM = _of("3×3, stride 2, of an image", 3, padding=1, stride=2, shape=(2, 3, 64, 64))
_BIASED = _of("1×1 with bias", 1, bias=True)
_OTHERS = {dtype: _in_channels_last("batch norm, max-pool", _batch_norm_and_pool, dtype) for dtype in _LIMITS}

# Never relied on: runs whose maps have one pixel are in NCHW, whatever is found here (torch-xpu-ops#4756).
_ONE_PIXEL = _of("3×3 of one pixel", 3, f"{_NCHW} where feature maps have one pixel", padding=1, shape=(8, 16, 1, 1))


def _times_as_long(device: torch.device) -> float:
    """Return how much longer a few layers take in channels_last than in NCHW, forwards and backwards.

    The least of three trials, each of the best of some rounds in turns, because others may use the machine.
    """
    run = {layout: _layers(device, layout) for layout in (torch.contiguous_format, torch.channels_last)}
    ratio = float("inf")
    for _ in range(_TRIALS):
        best = dict.fromkeys(run, float("inf"))
        for _ in range(_ROUNDS):
            for layout, step in run.items():
                torch.xpu.synchronize(device)
                start = time.perf_counter()
                step()
                torch.xpu.synchronize(device)
                best[layout] = min(best[layout], time.perf_counter() - start)
        ratio = min(ratio, best[torch.channels_last] / best[torch.contiguous_format])
        if ratio <= _SLOWER:
            break
    return ratio


def _layers(device: torch.device, layout: torch.memory_format) -> Any:
    given = Given(device, torch.float32)
    features = given.normal(4, 32, 40, 40, grad=True, layout=layout)
    weight = given.normal(32, 32, 3, 3, grad=True, layout=layout)
    scale, shift = given.normal(32, grad=True), given.normal(32, grad=True)
    gradient = given.normal(4, 32, 40, 40, layout=layout)

    def step() -> None:
        x = functional.conv2d(features, weight, padding=1)
        x = functional.silu(functional.batch_norm(x, None, None, scale, shift, training=True))
        pooled = functional.max_pool2d(x[..., :10, :10], 5, 1, 2)  # of smaller maps, as in a detector
        torch.autograd.grad((x, pooled), (features, weight, scale, shift), (gradient, torch.ones_like(pooled)))

    step()  # which compiles kernels
    return step


SPEED = Check("layers in channels_last, beside NCHW", torch.float32, _times_as_long, _SLOWER, "times", _NCHW)

CHECKS = [
    check
    for kinds in (
        _POINTWISE,
        _BIASED,
        _PLAIN,
        _STEM,
        _DEPTHWISE,
        _GROUPED,
        _ONE_CHANNEL,
        _TRANSPOSED,
        _OTHERS,
        _ONE_PIXEL,
    )
    for check in kinds.values()
] + [SPEED]


def checks_of(model: torch.nn.Module, dtype: torch.dtype) -> list[Check]:
    """Return the checks of what a model has, when it computes in a dtype (some of it in float32 always)."""
    kinds = [_OTHERS]
    for module in model.modules():
        if isinstance(module, torch.nn.ConvTranspose2d):
            kinds.append(_TRANSPOSED)
        elif isinstance(module, torch.nn.Conv2d):
            kinds.append(_kind_of(module))
    found = {check.key: check for kind in kinds for d in (torch.float32, dtype) if (check := kind.get(d))}
    return [SPEED, *found.values()]


def _kind_of(convolution: torch.nn.Conv2d) -> dict[torch.dtype, Check]:
    if convolution.groups > 1:
        return _DEPTHWISE if convolution.groups == convolution.in_channels else _GROUPED
    if convolution.in_channels == 1:
        return _ONE_CHANNEL
    if max(convolution.kernel_size) == 1:
        return _POINTWISE if convolution.bias is None else _BIASED
    return _STEM if convolution.in_channels == _COLOURS else _PLAIN
