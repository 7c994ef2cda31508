"""The seams of a run on an XPU, as pluggy specifications: what a plugin may decide, wrap or prepare.

A plugin is a module or object with functions of these names, marked with `yolo_xpu_trainer.hookimpl`, and named by an
entry point of the group `yolo_xpu_trainer`. It may leave out arguments that it doesn't need. Where the first result
counts, the plugin registered last is asked first; one that returns None passes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pluggy
import torch

from .devices import DeviceInfo
from .diagnosis import DoctorCheck
from .numerics import Check
from .options import Option
from .patches import Patch
from .run import Precision

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "yolo_xpu_trainer"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def xpu_options() -> list[Option[Any]]:  # type: ignore[empty-body]
    """Declare the `xpu_*` options that users can give."""


@hookspec
def xpu_numerics() -> list[Check]:  # type: ignore[empty-body]
    """Name the operators that the plugin leans on, so that the self-check compares them with the CPU's before a run.

    A run doesn't start where one is wrong, unless its check says what is done instead: then the plugin asks
    `yolo_xpu_trainer.avoids` before it uses the operator.
    """


@hookspec
def xpu_doctor_checks() -> list[DoctorCheck]:  # type: ignore[empty-body]
    """Add checks to `yolo-xpu doctor`; they run in a child process, after PyTorch was imported there."""


@hookspec
def xpu_trainers(upstream: type) -> dict[str, type]:  # type: ignore[empty-body]
    """Register trainers by the names that users give, as in `train(trainer="xpu")`.

    Args:
        upstream: Ultralytics' own trainer for the model's task.

    Returns:
        The trainers that can stand for it, by name; "xpu" is the one that plain `train()` on an XPU takes.
    """


@hookspec(firstresult=True)
def xpu_precision(device: DeviceInfo, requested: bool | str) -> Precision | None:  # type: ignore[empty-body]
    """Decide how a run computes.

    Args:
        device: The XPU.
        requested: What `amp` asks for: True, False, "bf16", "fp16" or "fp32".
    """


@hookspec
def xpu_configure(trainer: Any) -> None:
    """Settle a run's arguments, `trainer.args`, before Ultralytics reads them.

    Args:
        trainer: The trainer, which has its arguments and `trainer.xpu`, and nothing else yet.
    """


@hookspec
def xpu_report(trainer: Any) -> str | None:
    """Return a phrase for the line that says, before a run, how it computes.

    Args:
        trainer: The trainer, which has its arguments and `trainer.xpu`, and no model yet.
    """


@hookspec
def xpu_patches(trainer: Any) -> list[Patch]:  # type: ignore[empty-body]
    """Return the patches of Ultralytics that this plugin wants for the length of a run.

    Args:
        trainer: The trainer, which has no model yet.
    """


@hookspec
def xpu_prepare_model(trainer: Any) -> None:
    """Prepare a model that has just been moved to the device, before it is compiled, averaged or shared.

    Args:
        trainer: The trainer, whose optimizer and loaders don't exist yet.
    """


@hookspec(firstresult=True)
def xpu_prepare_optimizer(trainer: Any, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """Replace or change an optimizer.

    Args:
        trainer: The trainer.
        optimizer: What Ultralytics built.
    """


@hookspec
def xpu_after_setup(trainer: Any) -> None:
    """Prepare a trainer whose model, optimizer and loaders exist, before any state is loaded into them."""


@hookspec(firstresult=True)
def xpu_wrap_dataloader(trainer: Any, loader: Any, mode: str) -> Any | None:
    """Replace or change a data loader.

    Args:
        trainer: The trainer.
        loader: What Ultralytics, or the user's trainer, built.
        mode: "train" or "val".
    """


@hookspec(firstresult=True)
def xpu_move_batch(trainer: Any, batch: dict[str, Any]) -> dict[str, Any] | None:
    """Move a batch to the device; what is there already, Ultralytics leaves where it is.

    Asked once for each training batch. With `xpu_prefetch` this happens that many batches ahead, in a stream that the
    step waits for.

    Args:
        trainer: The trainer.
        batch: A batch on the host, by key.
    """


@hookspec
def xpu_arrange_batch(trainer: Any, batch: dict[str, Any]) -> None:
    """Change a batch that is on the device, in place, before Ultralytics normalises its images.

    Args:
        trainer: The trainer.
        batch: A batch on the device, by key; `img` has bytes, shaped (images, channels, height, width).
    """


@hookspec(firstresult=True)
def xpu_memory(device: DeviceInfo) -> tuple[int, int] | None:  # type: ignore[empty-body]
    """Return the bytes in use on the device and its total, for the progress line and for deciding when to clear."""


@hookspec
def xpu_around_run(trainer: Any) -> AbstractContextManager[Any]:  # type: ignore[empty-body]
    """Return a context for the length of a run, from before anything is set up until it has ended, however it ends."""


@hookspec
def xpu_around_save(trainer: Any) -> AbstractContextManager[Any]:  # type: ignore[empty-body]
    """Return a context in which a checkpoint is written."""


@hookspec
def xpu_checkpoint(trainer: Any) -> dict[str, Any]:  # type: ignore[empty-body]
    """Return what a checkpoint is to remember, by name: a run that is resumed finds it in `trainer.xpu.resumed`.

    Asked as the checkpoint is written, when the optimizer's state is on the host already.

    Args:
        trainer: The trainer.
    """


@hookspec
def xpu_around_validation(trainer: Any) -> AbstractContextManager[Any]:  # type: ignore[empty-body]
    """Return a context for a validation, after an epoch or of the finished run's best weights."""
