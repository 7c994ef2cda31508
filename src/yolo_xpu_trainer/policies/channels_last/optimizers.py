"""Try optimizers on small weights in both memory formats, before a run depends on channels_last."""

from __future__ import annotations

import copy
import importlib
from collections import OrderedDict, defaultdict
from typing import Any

import torch

from ...device_errors import is_lost
from .layout import of, train_in_nchw
from .restoring import same_random_numbers
from .trial import LIMIT
from .weights import follow_the_weights, in_nchw

__all__ = ["try_optimizer"]


def try_optimizer(trainer: Any, optimizer: torch.optim.Optimizer) -> None:
    """Go back to NCHW where an optimizer can't work in channels_last, else let its state follow the weights' layout."""
    layout = of(trainer)
    if not layout.wanted or optimizer in layout.optimizers:
        return
    layout.optimizers.add(optimizer)
    if reason := _refusal(optimizer):
        train_in_nchw(trainer, reason)
        return
    guarded = trainer.xpu.recovery.guarded
    optimizer.register_load_state_dict_post_hook(guarded(follow_the_weights))
    optimizer.register_state_dict_post_hook(guarded(in_nchw))


def _refusal(optimizer: torch.optim.Optimizer) -> str:
    """Return why an optimizer can't work in channels_last, "" where it does to those weights what it does to others."""
    kind = type(optimizer)
    if kind.__module__.partition(".")[0] == "ultralytics":
        if _supports_channels_last(kind):
            return ""
        return f"this Ultralytics' {kind.__name__} can't work in channels_last. Later releases can."
    if kind.__module__.startswith("torch.optim.") and kind.__name__ != "LBFGS":
        return ""
    try:
        plain, ours = (_steps(optimizer, f) for f in (torch.contiguous_format, torch.channels_last))
    except Exception as error:  # of whatever type users' code raises
        if is_lost(error):
            raise
        return f"the optimizer {kind.__name__} can't be tried in channels_last: {error}"
    if (plain - ours).norm() <= LIMIT * plain.norm():
        return ""
    return f"the optimizer {kind.__name__} makes other steps in channels_last."


def _supports_channels_last(kind: type) -> bool:
    """Whether an optimizer of Ultralytics' supports it: MuSGD didn't before 8.4.140 or so."""
    update = getattr(importlib.import_module(kind.__module__), "muon_update", None)
    if update is None:
        return True
    gradient = torch.rand(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    plain = update(gradient.clone(), torch.zeros_like(gradient))
    try:
        ours = update(*(x.to(memory_format=torch.channels_last) for x in (gradient, torch.zeros_like(gradient))))
    except RuntimeError:
        return False
    return torch.allclose(plain.view_as(gradient), ours.reshape(gradient.shape), atol=0.05)


def _steps(optimizer: torch.optim.Optimizer, memory_format: torch.memory_format) -> torch.Tensor:
    """Return what two steps of an optimizer change in small weights that stand for its own."""
    generator = torch.Generator().manual_seed(0)
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    twin = object.__new__(type(optimizer))
    weights = {id(p): _small(p, generator, memory_format) for p in owned}
    memo = {id(optimizer): twin, **weights}
    attributes = {
        name: value for name, value in vars(optimizer).items() if name not in ("state", "step") and "_hooks" not in name
    }
    vars(twin).update(copy.deepcopy(attributes, memo))
    twin.state = defaultdict(dict)
    for name in vars(optimizer):
        if "_hooks" in name:
            setattr(twin, name, OrderedDict())
    before = [weight.detach().clone() for weight in weights.values()]
    with same_random_numbers(owned[0].device):
        for _ in range(2):
            for weight in weights.values():
                weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=generator))
            twin.step()
    changes = [(a.detach() - b).flatten().float() for a, b in zip(weights.values(), before, strict=True)]
    return torch.cat([change.cpu() for change in changes])


def _small(
    parameter: torch.Tensor, generator: torch.Generator, memory_format: torch.memory_format
) -> torch.nn.Parameter:
    shape = [min(size, 4) for size in parameter.shape]
    values = (torch.rand(shape, generator=generator) * 0.1).to(parameter)
    if values.dim() == 4:
        values = values.contiguous(memory_format=memory_format)
    return torch.nn.Parameter(values, parameter.requires_grad)
