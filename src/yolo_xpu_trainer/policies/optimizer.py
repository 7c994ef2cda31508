"""Adam, AdamW and SGD update all weights in one kernel, where the device has one."""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..run import Run

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")
_KINDS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)

FUSED_OPTIMIZER = Option("fused_optimizer", True, "Adam, AdamW and SGD update all weights in one kernel")


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [FUSED_OPTIMIZER]


@hookimpl
def xpu_prepare_optimizer(trainer: Any, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """Build the optimizer anew, fused; Ultralytics asks for that on CUDA only.

    A fused optimizer also skips a step whose gradients overflowed by itself, for which the gradient scaler waits
    otherwise. It must be the constructor that is told so: there the scaler learns of it.
    """
    run: Run = trainer.xpu
    kind = type(optimizer)
    if not run.options[FUSED_OPTIMIZER] or kind not in _KINDS or not fused_agrees(kind, run.device.device):
        return None
    known = inspect.signature(kind).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in known}
    groups = [{**group, **_FUSED} for group in optimizer.param_groups]
    fused = kind(groups, **{**defaults, **_FUSED})
    fused.register_load_state_dict_pre_hook(_stay_fused)
    fused.register_state_dict_post_hook(_omit_fused)
    fused.register_step_pre_hook(_FirstStep())
    return fused


_FUSED: dict[str, Any] = {"fused": True, "foreach": None}


def _stay_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint's state, which says of no device that it is fused."""
    fused = [group.get("fused") for group in optimizer.param_groups]
    groups = zip(state["param_groups"], fused, strict=True)
    return {**state, "param_groups": [{**group, "fused": flag} for group, flag in groups]}


def _omit_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Leave it to the device that resumes a run whether its optimizer is fused."""
    for group in state["param_groups"]:
        group["fused"] = None


class _FirstStep:
    """Gives up fusing where gradients are laid out otherwise than weights, which the kernels refuse.

    Source: `check_fast_path_restrictions` in the fused kernels of CUDA and of torch-xpu-ops.
    """

    def __init__(self) -> None:
        self._passed = False

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._passed:
            self._passed = True
            _check_layouts(optimizer)


def _check_layouts(optimizer: torch.optim.Optimizer) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if all(p.grad.stride() == p.stride() for p in parameters):
        return
    for group in optimizer.param_groups:
        group["fused"] = False
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    _LOGGER.info("XPU: gradients have another memory layout than weights, so the optimizer is not fused.")


@functools.cache
def fused_agrees(kind: Any, device: torch.device) -> bool:
    """Whether this device has the fused kernel of an optimizer, and it does in two steps what the CPU's plain one does.

    Args:
        kind: Adam, AdamW or SGD.
        device: The device.
    """
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    if kind is torch.optim.SGD:
        options.update(momentum=0.9, nesterov=True)
    found = []
    for where, fused in ((torch.device("cpu"), False), (device, True)):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.nn.Parameter(torch.rand(n, generator=generator).to(where)) for n in (5, 40)]
        try:
            optimizer = kind(weights, **options, fused=fused)
            for _ in range(2):
                for weight in weights:
                    weight.grad = torch.randn(weight.shape, generator=generator).to(where)
                optimizer.step()
        except (RuntimeError, NotImplementedError):
            return False
        found.append(torch.cat([weight.detach().cpu() for weight in weights]))
    return torch.allclose(found[0], found[1], rtol=1e-5, atol=1e-7)
