"""Lay out what a run has: the weights of convolutions, and the optimizer's state that follows them."""

from __future__ import annotations

from typing import Any

import torch

from ...own_code import is_known

__all__ = ["follow_the_weights", "in_nchw", "lay_out"]


def lay_out(model: torch.nn.Module, memory_format: torch.memory_format = torch.channels_last) -> None:
    """Lay out the weights of a model's convolutions, with their gradients.

    Not by `model.to(memory_format=…)`, which lays out every parameter of four dimensions: one of a user's module, such
    as a positional embedding, may be read by `view`.
    """
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) and is_known(type(module)):
            weight = module._parameters.get("weight")  # which a parametrization has moved away
            if weight is not None and weight.dim() == 4:
                weight.data = weight.data.contiguous(memory_format=memory_format)
                if weight.grad is not None:
                    weight.grad.data = weight.grad.data.contiguous(memory_format=memory_format)


def follow_the_weights(optimizer: torch.optim.Optimizer) -> None:
    """Lay out an optimizer's state as its weights are: a checkpoint has it in NCHW."""
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, torch.Tensor) or not isinstance(state, dict):
            continue
        for name, value in state.items():
            if (
                isinstance(value, torch.Tensor)
                and value.shape == parameter.shape
                and value.stride() != parameter.stride()
            ):
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def in_nchw(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give a checkpoint an optimizer's state in NCHW."""
    state["state"] = {
        index: {name: v.contiguous() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
        if isinstance(values, dict)
        else values
        for index, values in state["state"].items()
    }
