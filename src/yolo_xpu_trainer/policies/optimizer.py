"""Adam, AdamW and SGD update all weights in one kernel, where the device has one."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..numerics import Check, avoids, compared
from ..numerics.cases import stepped
from ..options import Option
from ..run import Run

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")

FUSED_OPTIMIZER = Option(
    "fused_optimizer", True, "Adam, AdamW and SGD update all weights in one kernel", tried=(True, False)
)


_SETTINGS: dict[Any, dict[str, Any]] = {
    torch.optim.Adam: {},
    torch.optim.AdamW: {},
    torch.optim.SGD: {"momentum": 0.9, "nesterov": True},
}
_FUSED_KERNELS = {
    kind: Check(
        f"{kind.__name__}, fused",
        torch.float32,
        compared(stepped(kind, fused=True, **settings)),
        1e-3,
        instead="Weights are updated by more kernels than one, which is slower",
    )
    for kind, settings in _SETTINGS.items()
}


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [FUSED_OPTIMIZER]


@hookimpl
def xpu_numerics() -> list[Check]:
    return list(_FUSED_KERNELS.values())


@hookimpl
def xpu_prepare_optimizer(trainer: Any, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """Build the optimizer anew, fused; Ultralytics asks for that on CUDA only.

    A fused optimizer also skips a step whose gradients overflowed by itself, for which the gradient scaler waits
    otherwise. It must be the constructor that is told so: there the scaler learns of it.
    """
    run: Run = trainer.xpu
    kind = type(optimizer)
    chosen = optimizer.defaults.get("fused") is not None or optimizer.defaults.get("foreach") is not None
    if chosen or not run.options[FUSED_OPTIMIZER] or kind not in _FUSED_KERNELS:
        return None
    if avoids(run, _FUSED_KERNELS[kind], needed=True, together=True):  # GPUs without float64 have none
        return None
    known = inspect.signature(kind).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in known}
    groups = [{**group, **_FUSED} for group in optimizer.param_groups]
    try:
        fused = kind(groups, **{**defaults, **_FUSED})
    except RuntimeError as error:  # of weights that no kernel takes, such as complex ones
        _LOGGER.info(f"XPU: the optimizer is not fused, which is slower: {error}")
        return None
    fused.register_load_state_dict_pre_hook(run.recovery.guarded(_stay_fused))
    fused.register_state_dict_post_hook(run.recovery.guarded(_omit_fused))
    fused.register_step_pre_hook(run.recovery.guarded(_check_step, instead=_go_unchecked))
    return fused


_FUSED: dict[str, Any] = {"fused": True, "foreach": None}


def _stay_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint's state, which says of no device that it is fused."""
    fused = [group.get("fused") for group in optimizer.param_groups]
    groups = state["param_groups"]
    if len(groups) != len(fused):
        return state  # which is refused with a message of PyTorch's
    return {**state, "param_groups": [{**group, "fused": flag} for group, flag in zip(groups, fused, strict=True)]}


def _omit_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Leave it to the device that resumes a run whether its optimizer is fused."""
    for group in state["param_groups"]:
        group["fused"] = None


def _check_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Give up fusing where the kernels would refuse a step.

    They want gradients and state laid out as weights. Autograd lays gradients out so, except for weights with gaps in
    memory; gradients that users' code assigns may have any layout, and weights may be added, unfrozen or laid out anew
    at any time. So each step is looked at, which takes neither a kernel nor a sync.

    Source: `check_fast_path_restrictions` in the fused kernels of CUDA and of torch-xpu-ops.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False) and (reason := _obstacle(optimizer)):
        _give_up(optimizer, reason)


def _go_unchecked(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Give up fusing, because nothing tells whether the kernels would refuse a step."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        _give_up(optimizer, "its steps can't be checked")


def _obstacle(optimizer: torch.optim.Optimizer) -> str:
    states = {id(weight): state for weight, state in optimizer.state.items()}  # a tensor as a key takes long to look up
    for group in optimizer.param_groups:
        if not group.get("fused"):
            return "a group of weights is not"
        for weight in group["params"]:
            gradient = weight.grad
            if gradient is None:
                continue
            if gradient.is_sparse or gradient.is_complex():
                return "a weight is complex, or its gradient sparse"
            layout = weight.stride()
            fits = gradient.stride() == layout or _has_layout(gradient, weight)
            if fits and len(layout) > 1 and (state := states.get(id(weight))):
                like = state.get("exp_avg", state.get("momentum_buffer"))
                fits = like is None or like.stride() == layout or _has_layout(like, weight)
            if not fits:
                return "a weight's gradient or state has another memory layout"
    return ""


def _has_layout(tensor: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a tensor is laid out as a weight, which for a dimension of size 1 means nothing."""
    return all(size == 1 or a == b for size, a, b in zip(weight.shape, tensor.stride(), weight.stride(), strict=True))


def _give_up(optimizer: torch.optim.Optimizer, reason: str) -> None:
    """Go on without fusing, from this step on, for which the gradient scaler has counted on it already."""
    for group in optimizer.param_groups:
        group["fused"] = False
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    for state in optimizer.state.values():
        if isinstance(step := state.get("step"), torch.Tensor):
            state["step"] = step.cpu()  # a plain one reads it on the host, in every step
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    scale, overflow = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
    for name in ("grad_scale", "found_inf"):
        if hasattr(optimizer, name):
            setattr(optimizer, name, None)
    if overflow is not None and overflow.item():
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = None  # which skips the step
    elif scale is not None:
        for gradient in gradients:
            gradient.div_(scale)
    _LOGGER.info(f"XPU: the optimizer is not fused any more, which is slower: {reason}.")
