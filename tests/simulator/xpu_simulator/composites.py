"""Operators that XPUs and CUDA have and the CPU has not: cells of recurrent layers, synchronized batch norm.

They are composed of other operators here, so that each counts as several launches. Formulas as in ATen's native code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Optional = Tensor | None

_library: Any = None


def install() -> None:
    """Register them, once."""
    global _library
    if _library is not None:
        return
    library: Any = torch.library  # untyped in torch
    _library = library.Library("aten", "IMPL", "XPU")
    for name, function in {
        "_thnn_fused_lstm_cell": lstm_cell,
        "_thnn_fused_lstm_cell_backward_impl": lstm_cell_backward,
        "_thnn_fused_gru_cell": gru_cell,
        "_thnn_fused_gru_cell_backward": gru_cell_backward,
        "batch_norm_stats": batch_norm_stats,
        "batch_norm_gather_stats_with_counts": batch_norm_gather_stats,
        "batch_norm_elemt": batch_norm_elemt,
        "batch_norm_backward_reduce": batch_norm_backward_reduce,
        "batch_norm_backward_elemt": batch_norm_backward_elemt,
    }.items():
        _library.impl(name, function)


# ------------------------------------------------------------------------------------------------- recurrent layers


def lstm_cell(
    input_gates: Tensor, hidden_gates: Tensor, cx: Tensor, input_bias: Optional = None, hidden_bias: Optional = None
) -> tuple[Tensor, Tensor, Tensor]:
    gates = input_gates + hidden_gates
    if input_bias is not None and hidden_bias is not None:
        gates = gates + input_bias + hidden_bias
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat((i, f, g, o), 1)


def lstm_cell_backward(
    grad_hy: Optional, grad_cy: Optional, cx: Tensor, cy: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Optional]:
    i, f, g, o = workspace.chunk(4, 1)
    tanh_cy = cy.tanh()
    hy = torch.zeros_like(cy) if grad_hy is None else grad_hy
    dc = hy * o * (1 - tanh_cy * tanh_cy)
    if grad_cy is not None:
        dc = dc + grad_cy
    gates = torch.cat(
        (dc * g * i * (1 - i), dc * cx * f * (1 - f), dc * i * (1 - g * g), hy * tanh_cy * o * (1 - o)), 1
    )
    return gates, dc * f, gates.sum(0) if has_bias else None


def gru_cell(
    input_gates: Tensor, hidden_gates: Tensor, hx: Tensor, input_bias: Optional = None, hidden_bias: Optional = None
) -> tuple[Tensor, Tensor]:
    if input_bias is not None and hidden_bias is not None:
        input_gates, hidden_gates = input_gates + input_bias, hidden_gates + hidden_bias
    ir, iz, i_n = input_gates.chunk(3, 1)
    hr, hz, hn = hidden_gates.chunk(3, 1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (i_n + r * hn).tanh()
    return n + z * (hx - n), torch.cat((r, z, n, hx, hn), 1)


def gru_cell_backward(
    grad_hy: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Optional, Optional]:
    r, z, n, hx, hn = workspace.chunk(5, 1)
    dz = grad_hy * (hx - n) * z * (1 - z)
    dn = grad_hy * (1 - z) * (1 - n * n)
    dr = dn * hn * r * (1 - r)
    by_input = torch.cat((dr, dz, dn), 1)
    by_hidden = torch.cat((dr, dz, dn * r), 1)
    biases = (by_input.sum(0), by_hidden.sum(0)) if has_bias else (None, None)
    return by_input, by_hidden, grad_hy * z, *biases


# ------------------------------------------------------------------------------------------ synchronized batch norm


def _others(tensor: Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if dim != 1]


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape([1, -1] + [1] * (like.dim() - 2))


def batch_norm_stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    values = input.float()
    mean = values.mean(_others(input))
    variance = (values * values).mean(_others(input)) - mean * mean
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Optional,
    running_var: Optional,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    weights = counts.reshape(-1, 1).to(mean.dtype)
    total = weights.sum()
    joint = (mean * weights).sum(0) / total
    variance = ((invstd.pow(-2) - eps + mean * mean) * weights).sum(0) / total - joint * joint
    if running_mean is not None:
        running_mean.lerp_(joint.to(running_mean.dtype), momentum)
    if running_var is not None:
        running_var.lerp_((variance * total / (total - 1)).to(running_var.dtype), momentum)
    return joint, (variance + eps).rsqrt()


def batch_norm_elemt(
    input: Tensor, weight: Optional, bias: Optional, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    result = (input.float() - _per_channel(mean, input)) * _per_channel(invstd, input)
    if weight is not None:
        result = result * _per_channel(weight, input)
    if bias is not None:
        result = result + _per_channel(bias, input)
    return result.to(input.dtype)


def batch_norm_backward_reduce(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Optional,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor, Tensor, Optional, Optional]:
    grad = grad_out.float()
    sum_dy = grad.sum(_others(input))
    sum_dy_xmu = (grad * (input.float() - _per_channel(mean, input))).sum(_others(input))
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd if weight_g else None, sum_dy.clone() if bias_g else None


def batch_norm_backward_elemt(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Optional,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    total = count.sum()
    centred = input.float() - _per_channel(mean, input)
    spread = _per_channel(sum_dy_xmu / total * invstd * invstd, input)
    result = (grad_out.float() - _per_channel(sum_dy / total, input) - centred * spread) * _per_channel(invstd, input)
    if weight is not None:
        result = result * _per_channel(weight, input)
    return result.to(input.dtype)
