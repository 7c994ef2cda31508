"""Computations that several policies lean on, for their checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional

from .comparing import Given

__all__ = [
    "Computation",
    "attention",
    "batch_norm",
    "cat_and_split",
    "convolution",
    "of_features",
    "pooled",
    "products",
    "stepped",
]

Computation = Callable[[Given], Iterable[torch.Tensor]]


def convolution(
    kernel: int,
    *,
    shape: tuple[int, ...] = (4, 16, 12, 12),
    transposed: bool = False,
    layout: torch.memory_format | None = None,
    bias: bool = False,
    **settings: int,
) -> Computation:
    """Return a convolution to 16 channels, with the gradients of its input, its weight and its bias.

    Args:
        kernel: Height and width of the weight.
        shape: Images, channels, height and width of the input.
        transposed: Whether it is a transposed one.
        layout: The memory format of input and weight; by default NCHW.
        bias: Whether it has one.
        settings: Arguments of `conv2d`, such as `stride`.
    """

    def compute(given: Given) -> list[torch.Tensor]:
        features = given.normal(*shape, grad=True, layout=layout)
        channels = shape[1] // settings.get("groups", 1)
        outer = (shape[1], 16) if transposed else (16, channels)
        weight = given.normal(*outer, kernel, kernel, grad=True, layout=layout)
        convolve: Any = functional.conv_transpose2d if transposed else functional.conv2d
        if not bias:
            return given.with_gradients(convolve(features, weight, **settings), features, weight)
        added = given.normal(16, grad=True)
        return given.with_gradients(convolve(features, weight, added, **settings), features, weight, added)

    return compute


def batch_norm(given: Given) -> list[torch.Tensor]:
    """Compute batch norm in training, with its gradients and running statistics, and in evaluation.

    Scale, shift and statistics are float32 as autocast leaves them, where feature maps have 16 bits; at last they are
    rounded, too, as those of a model are that is validated after `half()`.
    """
    features = given.normal(4, 16, 20, 20, grad=True)
    scale, shift = (given.normal(16, grad=True, rounded=False) for _ in range(2))
    mean, variance = given.normal(16, rounded=False), given.normal(16, rounded=False).square()
    output = functional.batch_norm(features, mean, variance, scale, shift, training=True, momentum=0.03, eps=1e-3)
    of_model = mean, variance, scale.detach(), shift.detach()
    kinds = [of_model] if given.dtype is torch.float32 else [of_model, tuple(map(given.rounded, of_model))]
    evaluated = [functional.batch_norm(features.detach(), m, v, w, b, eps=1e-3) for m, v, w, b in kinds]
    return [*given.with_gradients(output, features, scale, shift), mean, variance, *evaluated]


def pooled(kernel: int, stride: int, layout: torch.memory_format | None = None) -> Computation:
    """Return max-pooling with its gradient, over maps in which no number comes twice in a window.

    Numbers of 16 bits often do, and which of two equal ones gets the gradient is a kernel's own affair.

    Args:
        kernel: Height and width of a window, 10 at most.
        stride: How far windows are apart.
        layout: The memory format; by default NCHW.
    """

    def compute(given: Given) -> list[torch.Tensor]:
        tile = given.orders(4 * 16, 100).view(4, 16, 10, 10) - 50  # which 16 bits hold exactly
        tiled = given.rounded(tile.repeat(1, 1, 2, 2)).contiguous(memory_format=layout or torch.contiguous_format)
        features = tiled.requires_grad_()
        return given.with_gradients(functional.max_pool2d(features, kernel, stride, kernel // 2), features)

    return compute


def cat_and_split(given: Given) -> list[torch.Tensor]:
    """Join and split channels as the blocks of a model do, with the gradients."""
    features, more = given.normal(4, 16, 20, 20, grad=True), given.normal(4, 8, 20, 20, grad=True)
    first, second = torch.cat((features, more), 1).split((10, 14), 1)  # type: ignore[no-untyped-call]
    first, (left, right) = first.flip(1), second.chunk(2, 1)
    return given.with_gradients(torch.cat((right, first, left), 1), features, more)


def of_features(function: Callable[[torch.Tensor], torch.Tensor]) -> Computation:
    """Return a function of feature maps, with its gradient."""

    def compute(given: Given) -> list[torch.Tensor]:
        features = given.normal(4, 16, 20, 20, grad=True)
        return given.with_gradients(function(features), features)

    return compute


def products(given: Given) -> list[torch.Tensor]:
    """Compute matrix products as linear layers and attention do, with their gradients."""
    rows, columns = given.normal(64, 256, grad=True), given.normal(256, 80, grad=True)
    bias = given.normal(80, grad=True)
    batches, others = given.normal(4, 50, 32, grad=True), given.normal(4, 32, 50, grad=True)
    return [
        *given.with_gradients(torch.addmm(bias, rows, columns), rows, columns, bias),
        *given.with_gradients(rows @ columns, rows, columns),
        *given.with_gradients(torch.bmm(batches, others), batches, others),
    ]


def attention(given: Given) -> list[torch.Tensor]:
    """Compute attention as YOLO11 (softmax between products) and YOLO12 or RT-DETR (one operator) do."""
    query, key, value = (given.normal(2, 4, 100, 32, grad=True) for _ in range(3))
    weights = (query @ key.transpose(-2, -1) * 32**-0.5).softmax(-1)
    return [
        *given.with_gradients(weights @ value, query, key, value),
        *given.with_gradients(functional.scaled_dot_product_attention(query, key, value), query, key, value),
    ]


def stepped(kind: Any, fused: bool, **settings: Any) -> Computation:
    """Return three steps of an optimizer, as how far the weights went.

    Args:
        kind: The optimizer's class.
        fused: Whether by fused kernels; else by those of lists, which PyTorch takes on XPUs where neither is asked for.
        settings: The optimizer's arguments.
    """

    def compute(given: Given) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(given.normal(*shape)) for shape in ((5,), (40,), (16, 8, 3, 3), (70000,))]
        before = [weight.detach().clone() for weight in weights]
        on_device: dict[str, Any] = {"fused" if fused else "foreach": True} if given.device.type != "cpu" else {}
        optimizer = kind(weights, lr=0.01, weight_decay=0.1, **settings, **on_device)
        for _ in range(3):
            for weight in weights:
                weight.grad = given.normal(*weight.shape)
            optimizer.step()
        return [weight.detach() - start for weight, start in zip(weights, before, strict=True)]

    return compute
