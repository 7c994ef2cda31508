"""Computations that several policies lean on, for their checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional

from .comparing import Given

__all__ = ["Computation", "attention", "batch_norm", "convolution", "of_features", "products", "stepped"]

Computation = Callable[[Given], Iterable[torch.Tensor]]


def convolution(
    kernel: int,
    *,
    shape: tuple[int, ...] = (4, 16, 12, 12),
    transposed: bool = False,
    layout: torch.memory_format | None = None,
    **settings: int,
) -> Computation:
    """Return a convolution to 16 channels, with the gradients of its input and its weight.

    Args:
        kernel: Height and width of the weight.
        shape: Images, channels, height and width of the input.
        transposed: Whether it is a transposed one.
        layout: The memory format of input and weight; by default NCHW.
        settings: Arguments of `conv2d`, such as `stride`.
    """

    def compute(given: Given) -> list[torch.Tensor]:
        features = given.normal(*shape, grad=True, layout=layout)
        channels = shape[1] // settings.get("groups", 1)
        outer = (shape[1], 16) if transposed else (16, channels)
        weight = given.normal(*outer, kernel, kernel, grad=True, layout=layout)
        convolve: Any = functional.conv_transpose2d if transposed else functional.conv2d
        return given.with_gradients(convolve(features, weight, **settings), features, weight)

    return compute


def batch_norm(given: Given) -> list[torch.Tensor]:
    """Compute batch norm in training, with its gradients and running statistics, and in evaluation."""
    features = given.normal(4, 16, 20, 20, grad=True)
    scale, shift = given.normal(16, grad=True), given.normal(16, grad=True)
    mean, variance = given.normal(16), given.normal(16).square()
    output = functional.batch_norm(features, mean, variance, scale, shift, training=True, momentum=0.03, eps=1e-3)
    evaluated = functional.batch_norm(features.detach(), mean, variance, scale, shift, training=False, eps=1e-3)
    return [*given.with_gradients(output, features, scale, shift), mean, variance, evaluated]


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
    """Return three steps of an optimizer, as how far the weights went."""

    def compute(given: Given) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(given.normal(*shape)) for shape in ((5,), (40,), (16, 8, 3, 3), (70000,))]
        before = [weight.detach().clone() for weight in weights]
        on_device: dict[str, Any] = {"fused": fused} if given.device.type != "cpu" else {}
        optimizer = kind(weights, lr=0.01, weight_decay=0.1, **settings, **on_device)
        for _ in range(3):
            for weight in weights:
                weight.grad = given.normal(*weight.shape)
            optimizer.step()
        return [weight.detach() - start for weight, start in zip(weights, before, strict=True)]

    return compute
