"""Convolutions in channels_last (NHWC), the memory format that oneDNN's XPU kernels are fastest in.

Source: Intel Extension for PyTorch, "Channels Last". Not measured by us on Intel hardware; `yolo-xpu bench` measures it
on a user's.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option, Options
from ..patches import patch
from ..run import Run, StashKey

__all__ = ["PATCHES"]

_LOGGER = logging.getLogger("ultralytics")

CHANNELS_LAST = Option(
    "channels_last",
    True,
    "convolutions work in channels_last (NHWC); Ultralytics' own `channels_last=False` switches it off as well",
    modes="all",
)
ACTIVE = StashKey[bool]()
"""Whether the run's convolutions work in channels_last."""


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [CHANNELS_LAST]


@hookimpl
def xpu_configure(trainer: Any) -> None:
    """Decide, by the option and by Ultralytics' own argument, of which True makes it warn that only CUDA can."""
    run: Run = trainer.xpu
    argument = getattr(trainer.args, "channels_last", None)
    run.stash[ACTIVE] = run.options[CHANNELS_LAST] and argument is not False
    if argument:
        trainer.args.channels_last = None


@hookimpl
def xpu_report(trainer: Any) -> str:
    """Say which memory format the run has."""
    return "channels_last memory format" if trainer.xpu.stash[ACTIVE] else "NCHW memory format as requested"


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Let what the run validates and predicts have its memory format."""
    with Options.scope({CHANNELS_LAST.name: trainer.xpu.stash[ACTIVE]}):
        yield


@hookimpl
def xpu_prepare_model(trainer: Any) -> None:
    """Lay out the model's weights in channels_last; the average that is made of it later has its layout."""
    if trainer.xpu.stash[ACTIVE]:
        trainer.model.to(memory_format=torch.channels_last)


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Go back to NCHW where the optimizer can't work in it, else let its state follow the weights' layout."""
    run: Run = trainer.xpu
    if not run.stash[ACTIVE]:
        return
    if not _supports_channels_last(trainer.optimizer):
        _LOGGER.warning(
            f"XPU: training in NCHW, which is slower, because this Ultralytics' {type(trainer.optimizer).__name__} "
            "can't work in channels_last. Later releases can."
        )
        run.stash[ACTIVE] = False
        for model in (trainer.model, trainer.ema and trainer.ema.ema):
            if model:
                model.to(memory_format=torch.contiguous_format)
        return
    trainer.optimizer.register_load_state_dict_post_hook(_follow_the_weights)
    trainer.optimizer.register_state_dict_post_hook(_in_nchw)


@hookimpl
def xpu_arrange_batch(trainer: Any, batch: dict[str, Any]) -> None:
    """Lay out the images in channels_last while they are bytes."""
    images = batch.get("img")
    if trainer.xpu.stash[ACTIVE] and isinstance(images, torch.Tensor) and images.dim() == 4:
        batch["img"] = images.contiguous(memory_format=torch.channels_last)


@patch("ultralytics.nn.autobackend:AutoBackend.__init__", why="it keeps to NCHW on every GPU but CUDA's")
def init(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    """Make a backend, whose model works in channels_last on an XPU."""
    asked = kwargs.get("channels_last")
    if asked and _is_xpu(kwargs.get("device")):
        kwargs["channels_last"] = None  # True makes it warn that an XPU can't
    original(self, *args, **kwargs)
    model = getattr(getattr(self, "backend", self), "model", None)
    if isinstance(model, torch.nn.Module) and asked is not False and CHANNELS_LAST.current():
        weight = next(model.parameters(), None)
        if weight is not None and _is_xpu(weight.device):
            model.to(memory_format=torch.channels_last)


PATCHES = [init]


def _is_xpu(device: Any) -> bool:
    return isinstance(device, torch.device) and device.type == "xpu"


def _supports_channels_last(optimizer: torch.optim.Optimizer) -> bool:
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
