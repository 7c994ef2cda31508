"""Convolutions in channels_last (NHWC), the memory format that oneDNN's XPU kernels are fastest in.

Source: Intel Extension for PyTorch, "Channels Last". Not measured by us on Intel hardware; `yolo-xpu bench` measures it
on a user's.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..run import Run

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")


@hookimpl
def xpu_prepare_model(trainer: Any) -> None:
    """Lay out the model's weights in channels_last; the average that is made of it later has its layout."""
    run: Run = trainer.xpu
    if run.channels_last:
        trainer.model.to(memory_format=torch.channels_last)


@hookimpl
def xpu_before_resume(trainer: Any) -> None:
    """Go back to NCHW where the optimizer can't bear it, else let the optimizer's state follow the weights' layout."""
    run: Run = trainer.xpu
    if not run.channels_last:
        return
    if not _bears_channels_last(trainer.optimizer):
        _LOGGER.warning(
            f"XPU: this Ultralytics' {type(trainer.optimizer).__name__} can't work in channels_last, so the run goes "
            "on in NCHW, which is slower. Later releases can."
        )
        run.channels_last = False
        for model in (trainer.model, trainer.ema and trainer.ema.ema):
            if model:
                model.to(memory_format=torch.contiguous_format)
        return
    trainer.optimizer.register_load_state_dict_post_hook(_follow_the_weights)
    trainer.optimizer.register_state_dict_post_hook(_in_nchw)


@hookimpl
def xpu_arrange_batch(trainer: Any, batch: dict[str, Any]) -> None:
    """Lay out the images in channels_last while they are bytes."""
    run: Run = trainer.xpu
    images = batch.get("img")
    if run.channels_last and isinstance(images, torch.Tensor) and images.dim() == 4:
        batch["img"] = images.contiguous(memory_format=torch.channels_last)


def _bears_channels_last(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer does to channels_last weights what it does to others: MuSGD didn't before 8.4.140 or so."""
    update = getattr(importlib.import_module(type(optimizer).__module__), "muon_update", None)
    if update is None:
        return True
    gradient = torch.rand(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    plain = update(gradient.clone(), torch.zeros_like(gradient))
    try:
        ours = update(*(x.to(memory_format=torch.channels_last) for x in (gradient, torch.zeros_like(gradient))))
    except RuntimeError:
        return False
    return torch.allclose(plain.view_as(gradient), ours.reshape(gradient.shape), atol=0.05)


def _follow_the_weights(optimizer: torch.optim.Optimizer) -> None:
    """Lay out an optimizer's state as its weights are: a checkpoint has it in NCHW."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _in_nchw(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give a checkpoint an optimizer's state in NCHW."""
    state["state"] = {
        index: {name: v.contiguous() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
        for index, values in state["state"].items()
    }
