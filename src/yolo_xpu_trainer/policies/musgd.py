"""MuSGD, which `optimizer=auto` takes for long trainings, updates all weights together, in few kernels.

Ultralytics 8.4.0 to 8.4.100 or so orthogonalises each weight's update by itself: 7,700 kernels a step of a YOLO11n. The
newest one does so together; here that takes some 50 kernels less.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..numerics import Check, Given, avoids, compared
from ..own_code import is_known
from ..run import Run

__all__ = ["batched", "orthogonal"]

_MODULE = "ultralytics.optim.muon"
_COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic Newton-Schulz iteration, as Ultralytics has them
_ITERATIONS, _EPSILON = 5, 1e-7
_MOST_PADDED = 16  # times a matrix's rows
_OF_MUON = [(16, 3, 3, 3), (32, 16, 3, 3), (16, 32, 1, 1), (64, 32, 1, 1), (8, 1, 3, 3), (80, 64)]


def _may_be_used(trainer: Any) -> bool:
    """Whether a run may take Ultralytics' MuSGD, which an older one hasn't."""
    return _MODULE in sys.modules and str(getattr(trainer.args, "optimizer", "auto")).lower() in ("auto", "musgd")


def _orthogonal(given: Given) -> list[torch.Tensor]:
    return orthogonal([given.normal(*shape) for shape in _OF_MUON])


def _three_steps(given: Given) -> list[torch.Tensor]:
    """Compute three steps of weights of both kinds, as how far each went."""
    optimizer = SimpleNamespace(state=defaultdict(dict), muon=0.2, sgd=1.0)
    common = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
    moved = []
    for use_muon, shapes in ((True, _OF_MUON), (False, [(16,), (64,), (80,)])):
        group = {"use_muon": use_muon, "weight_decay": 5e-4 * use_muon, **common}
        weights = [given.normal(*shape) for shape in shapes]
        before = [weight.detach().clone() for weight in weights]
        for _ in range(3):
            for weight in weights:
                weight.grad = given.normal(*weight.shape)
            with torch.no_grad():
                _update(optimizer, group, weights)
        moved += [weight.detach() - start for weight, start in zip(weights, before, strict=True)]
    return moved


_CHECKS = [
    Check(
        operator,
        torch.float32,
        compared(compute),
        limit,
        instead="MuSGD updates weights as Ultralytics does",
        needed=_may_be_used,
    )
    # The iterations aren't meant to converge: roundings of bfloat16 in another order were seen to make 0.3.
    for operator, compute, limit in (
        ("MuSGD's orthogonal updates", _orthogonal, 0.7),
        ("MuSGD's steps", _three_steps, 0.05),
    )
]


@hookimpl
def xpu_numerics() -> list[Check]:
    return _CHECKS


@hookimpl(tryfirst=True)  # the first answer counts, and this one is of its kind alone
def xpu_prepare_optimizer(trainer: Any, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """Let Ultralytics' MuSGD take all weights of a kind at once."""
    kind = type(optimizer)
    if getattr(sys.modules.get(_MODULE), "MuSGD", None) is not kind:
        return None
    run: Run = trainer.xpu
    if not is_known(kind.step) or avoids(run, *_CHECKS, together=True):
        return None
    for group in optimizer.param_groups:  # what fails in the middle of a step can't be made good
        if group["use_muon"]:
            orthogonal([torch.zeros_like(weight) for weight in group["params"]])
    return batched(optimizer)


def batched(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimizer, which is given a class of its own, whose steps update all weights together.

    Args:
        optimizer: A MuSGD.
    """
    kind: Any = type(optimizer)
    optimizer.__class__ = type(kind.__name__, (kind,), {"step": _step})
    optimizer._patch_step_function()
    return optimizer


def _step(optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
    """Make a step."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    with torch.no_grad():
        for group in optimizer.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                _update(optimizer, group, weights)
    return loss


def _update(optimizer: Any, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
    """Update the weights of a group: by their orthogonalised momentum, where it says so, and as SGD does."""
    rate, momentum, nesterov = group["lr"], group["momentum"], group["nesterov"]
    names: tuple[str, ...] = ("momentum_buffer", "momentum_buffer_SGD") if group["use_muon"] else ("momentum_buffer",)
    for weight in weights:
        if not optimizer.state[weight]:
            optimizer.state[weight].update({name: torch.zeros_like(weight) for name in names})
    gradients: list[torch.Tensor] = [weight.grad for weight in weights if weight.grad is not None]
    buffers = [optimizer.state[weight][names[0]] for weight in weights]
    if group["use_muon"]:
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum) if nesterov else buffers
        torch._foreach_add_(weights, orthogonal(updates), alpha=-rate * optimizer.muon)
        rate *= optimizer.sgd
        buffers = [optimizer.state[weight][names[1]] for weight in weights]
    if group["weight_decay"]:
        gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, gradients)
    updates = torch._foreach_add(gradients, buffers, alpha=momentum) if nesterov else buffers
    torch._foreach_add_(weights, updates, alpha=-rate)


def orthogonal(updates: Any) -> list[torch.Tensor]:
    """Return orthogonalised matrices, of those with as many columns together.

    Args:
        updates: Tensors of two dimensions, or of more, all but the first of which are columns.

    Returns:
        Tensors of the same shapes and dtypes, computed in bfloat16; in channels_last where the updates are.
    """
    found: list[torch.Tensor] = [update if _is_dense(update) else update.contiguous() for update in updates]
    kinds: dict[Any, list[int]] = {}
    for i, update in enumerate(found):
        scale = max(1.0, update.size(-2) / update.size(-1)) ** 0.5
        kinds.setdefault((update[0].numel(), scale, update.dtype, update.device), []).append(i)
    for (columns, scale, dtype, device), members in _of_like_heights(found, kinds):
        rows = len(found[members[0]])
        strides, starts = (columns, 1), range(0, len(members) * rows * columns, rows * columns)
        matrices = [found[i].as_strided((len(found[i]), columns), strides) for i in members]
        # Rows of zeros stay zeros, so that matrices of different heights go together.
        joined = torch.zeros(len(members), rows, columns, dtype=torch.bfloat16, device=device)
        into = [joined.as_strided(m.shape, strides, start) for m, start in zip(matrices, starts, strict=True)]
        torch._foreach_copy_(into, matrices)
        done = _orthogonalised(joined).to(dtype)
        if scale != 1:
            done *= scale
        for i, start in zip(members, starts, strict=True):
            found[i] = done.as_strided(found[i].shape, found[i].stride(), start)
    return found


def _of_like_heights(updates: list[torch.Tensor], kinds: dict[Any, list[int]]) -> Iterator[tuple[Any, list[int]]]:
    """Yield what goes together, of which no matrix is more than 16 times as high as another, as in Ultralytics.

    Padding all to the highest would take more time and memory than the kernels that it saves.
    """
    for kind, members in kinds.items():
        members = sorted(members, key=lambda i: -len(updates[i]))
        while members:
            fitting = [i for i in members if len(updates[members[0]]) <= _MOST_PADDED * len(updates[i])]
            yield kind, fitting
            members = members[len(fitting) :]


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's rows lie in memory one after the other; the order of their columns doesn't matter."""
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Return matrices whose singular values are near 1, by Newton-Schulz iterations.

    Args:
        matrices: Shaped (matrices, rows, columns), changed in place.
    """
    a, b, c = _COEFFICIENTS
    matrices /= torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True) + _EPSILON
    is_tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if is_tall else matrices
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT.contiguous() if is_tall else x
