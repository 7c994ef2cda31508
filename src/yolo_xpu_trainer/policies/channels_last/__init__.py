"""Convolutions in channels_last (NHWC), the memory format that oneDNN's XPU kernels are fastest in.

Source: Intel Extension for PyTorch, "Channels Last". Not measured by us on Intel hardware; `yolo-xpu bench` measures it
on a user's.

Code that isn't PyTorch's, torchvision's or Ultralytics' may count on NCHW: by `view`, `as_strided`, or an optimizer
that flattens gradients. It is tried in both layouts before a run depends on it, and where it fails or computes
something else, the run stays in NCHW.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ...batches import changes_batches
from ...hookspecs import hookimpl
from ...numerics import Check, avoids
from ...options import Option, Options
from ...own_code import named, own_code, unwrapped
from ...patches import patch
from ...run import Run
from ...versions import torch_release
from .layout import LAYOUT, Layout, go_without, of, train_in, train_in_nchw
from .numerics import CHECKS, checks_of
from .optimizers import try_optimizer
from .trial import Trial
from .weights import lay_out

__all__ = ["PATCHES"]

_LOGGER = logging.getLogger("ultralytics")
_STRIDE = 32  # Ultralytics takes no less for a model's, and that of a classifier's layers is that, whatever it says
_OLDER_SCALE = 0.5


def _by_default() -> bool:
    """Whether channels_last is the default: before 2.7 its kernels of batch normalization are slow.

    Source: torch-xpu-ops#1317, #1327.
    """
    return torch_release() >= (2, 7)


CHANNELS_LAST = Option(
    "channels_last",
    True,
    "convolutions work in channels_last (NHWC); Ultralytics' own `channels_last=False` switches it off as well; "
    "`False` by default before PyTorch 2.7",
    modes="all",
    tried=(True, False),
    usual=lambda device: _by_default(),
)


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [CHANNELS_LAST]


@hookimpl
def xpu_numerics() -> list[Check]:
    return CHECKS


@hookimpl
def xpu_configure(trainer: Any) -> None:
    """Decide, by the option and by Ultralytics' own argument, of which True makes it warn that only CUDA can."""
    run: Run = trainer.xpu
    argument = getattr(trainer.args, "channels_last", None)
    wanted = run.options.on(run.device, CHANNELS_LAST) or (argument and run.options[CHANNELS_LAST])
    run.stash[LAYOUT] = Layout(bool(wanted and argument is not False))
    if argument:
        trainer.args.channels_last = None


@hookimpl
def xpu_report(trainer: Any) -> str:
    """Say which memory format the run has."""
    if of(trainer).wanted:
        return "channels_last memory format"
    options: Options = trainer.xpu.options
    if options.is_tuned(CHANNELS_LAST):
        return "NCHW memory format as measured"
    requested = options.is_given(CHANNELS_LAST) or _by_default()
    return "NCHW memory format " + ("as requested" if requested else f"on PyTorch {torch.__version__}")


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Let what the run predicts have its memory format, and try every optimizer before its first step."""

    def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is getattr(trainer, "optimizer", None):
            recovery.calling(try_optimizer, trainer, optimizer, instead=lambda *_: go_without(trainer))

    recovery = trainer.xpu.recovery
    hook = register_optimizer_step_pre_hook(before_step)
    try:
        with Options.scope({CHANNELS_LAST.name: of(trainer).wanted}):
            yield
    finally:
        hook.remove()


@hookimpl
@contextmanager
def xpu_around_validation(trainer: Any) -> Iterator[None]:
    """Validate in the memory format that the run has by now."""
    with Options.scope({CHANNELS_LAST.name: of(trainer).wanted}):
        yield


@hookimpl
def xpu_prepare_model(trainer: Any) -> None:
    """Lay out the model's weights; the average that is made of it later has its layout.

    A model with code of users' stays as it is until that was tried on a batch, because AutoBatch and the check of
    mixed precision run it before.
    """
    layout = of(trainer)
    if layout.wanted and (sides := _smallest_sides(trainer)):
        layout.wanted = False
        _LOGGER.info(
            f"XPU: training in NCHW, because images of {sides} pixels become feature maps of one, for which XPUs were "
            "seen to compute wrong gradients in channels_last (torch-xpu-ops#4756)."
        )
    precision = trainer.xpu.precision.dtype or torch.float32
    if layout.wanted and avoids(trainer.xpu, *checks_of(trainer.model, precision), together=True):
        layout.wanted = False
    if layout.wanted and not own_code(trainer.model):
        lay_out(trainer.model)
        layout.model = trainer.model


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Try the optimizer, and in each epoch what came to the model since."""
    if of(trainer).wanted:
        try_optimizer(trainer, trainer.optimizer)
        look = trainer.xpu.recovery.guarded(_look, instead=go_without)
        trainer.add_callback("on_train_epoch_start", look)


def _look(trainer: Any) -> None:
    """Look, as an epoch starts, for users' code that came since the last one, or for another model."""
    layout = of(trainer)
    if not layout.wanted or not isinstance(trainer.model, torch.nn.Module):
        return
    own = own_code(trainer.model)
    new = [thing for key, thing in own.items() if key not in layout.tried]
    if not new and layout.model is unwrapped(trainer.model):
        return
    layout.tried = own
    if not own:
        train_in(torch.channels_last, trainer)
    elif getattr(trainer.args, "compile", False) or trainer.xpu.world_size > 1:
        how = "in a compiled model" if getattr(trainer.args, "compile", False) else "on several devices"
        train_in_nchw(trainer, f"the model has code of its own ({named(new)}), which can't be tried {how}.")
    else:
        layout.model = None
        Trial(trainer)


@hookimpl
def xpu_arrange_batch(trainer: Any, batch: dict[str, Any]) -> None:
    """Lay out the images in channels_last while they are bytes.

    Not where a user's `preprocess_batch` gets them afterwards: then the first convolution does it.
    """
    images = batch.get("img")
    layout = of(trainer)
    if (
        layout.wanted
        and layout.model is not None
        and layout.model is unwrapped(trainer.model)
        and isinstance(images, torch.Tensor)
        and images.dim() == 4
        and not changes_batches(trainer)
    ):
        batch["img"] = images.contiguous(memory_format=torch.channels_last)


@patch("ultralytics.nn.autobackend:AutoBackend.__init__", why="it keeps to NCHW on every GPU but CUDA's")
def init(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    """Make a backend, whose model works in channels_last on an XPU if it has no code of users', which may not."""
    asked = kwargs.get("channels_last")
    if asked and _is_xpu(kwargs.get("device")):
        kwargs["channels_last"] = None  # True makes it warn that an XPU can't
    original(self, *args, **kwargs)
    model = getattr(getattr(self, "backend", self), "model", None)
    if not isinstance(model, torch.nn.Module) or asked is False:
        return
    weight = next(model.parameters(), None)
    if weight is not None and _is_xpu(weight.device) and _wanted_now(asked) and not own_code(model):
        lay_out(model)


PATCHES = [init]


def _wanted_now(argument: bool | None) -> bool:
    """Whether the call in progress, which may be of no run, wants channels_last, with Ultralytics' own argument."""
    given = CHANNELS_LAST.name in Options.in_scope() or CHANNELS_LAST.variable in os.environ
    return argument is not False and bool(CHANNELS_LAST.current() if given else argument or _by_default())


def _smallest_sides(trainer: Any) -> int:
    """Return the sides of the smallest images of a run, where their deepest feature maps have one pixel, else 0.

    There one operand of a convolution alone tells the layout, and the XPU's gradients take one for the other
    (torch-xpu-ops#4756, open in torch 2.14 as pytorch#190773).
    """
    stride = max(int(max(getattr(trainer.model, "stride", [0]))), _STRIDE)
    size = trainer.args.imgsz
    size = max(size) if isinstance(size, (list, tuple)) else int(size)
    scale = getattr(trainer.args, "multi_scale", 0) or 0
    scale = _OLDER_SCALE if scale is True else scale  # a switch before 8.4.0 or so
    smallest = max(int(-(-size // stride) * stride * (1 - scale)) // stride, 1) * stride
    return smallest if smallest == stride else 0


def _is_xpu(device: Any) -> bool:
    return isinstance(device, torch.device) and device.type == "xpu"
