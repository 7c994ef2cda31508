"""The gradient scaler of an fp16 run needs no float64, which Arc A cards don't have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from ..hookspecs import hookimpl
from ..numerics import ANOTHER_PRECISION, Check, Given, compared
from ..run import Run

__all__ = ["GradScaler"]

_LOGGER = logging.getLogger("ultralytics")


def _scaled_steps(given: Given) -> list[torch.Tensor]:
    """Compute three steps of SGD with the gradients scaled, of which those of the second overflow."""
    scaler = GradScaler(given.device.type, init_scale=64.0, growth_interval=1)
    weight = given.normal(1000, grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    seen = []
    for factor in (1.0, torch.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale((weight * given.normal(1000)).sum() * factor).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        assert scaler._scale is not None
        seen += [weight.detach().clone(), scaler._scale.as_subclass(torch.Tensor).clone()]  # type: ignore[no-untyped-call]
    return seen


_SCALER = Check(
    "gradient scaler",
    torch.float16,
    compared(_scaled_steps, torch.float32),
    1e-3,
    instead=ANOTHER_PRECISION,
    advice="amp='bf16' and amp='fp32' need no scaler.",
)


@hookimpl
def xpu_numerics() -> list[Check]:
    return [_SCALER]


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Give the trainer a scaler for its device; one that does nothing where none is needed."""
    run: Run = trainer.xpu
    trainer.scaler = GradScaler("xpu", enabled=run.precision.needs_scaler)
    if run.precision.needs_scaler and (state := run.resumed.get("scaler")):
        trainer.scaler.load_state_dict(state)
    if run.precision.needs_scaler:
        trainer.add_callback("on_train_epoch_end", _give_fp16_up)


@hookimpl
def xpu_checkpoint(trainer: Any) -> dict[str, Any]:
    """Return the scaler's state, which Ultralytics itself saves since 8.3.220 or so."""
    return {"scaler": trainer.scaler.state_dict()} if trainer.xpu.precision.needs_scaler else {}


_LEAST_SCALE = 1.0  # where it begins at 65536 and is halved by each overflow: gradients themselves don't fit any more


def _give_fp16_up(trainer: Any) -> None:
    """Go on in bf16, or in fp32, where gradients overflow float16 whatever their scale."""
    run: Run = trainer.xpu
    if not run.precision.needs_scaler or not isinstance(trainer.scaler, GradScaler):
        return
    scale = trainer.scaler.get_scale()
    if scale >= _LEAST_SCALE:
        return
    name: Literal["bf16", "fp32"] = "bf16" if run.device.has_matrix_units else "fp32"
    reason = f"gradients overflowed fp16 until their scale was {scale:g}"
    run.precision = replace(run.precision, name=name, reason=reason)
    trainer.amp = run.precision.dtype is not None
    trainer.scaler = GradScaler("xpu", enabled=False)
    if not run.is_worker:
        _LOGGER.warning(f"XPU: training goes on in {name}, because {reason}.")


class _Scale(torch.Tensor):
    """A scale that is updated in float32, and answers `.double()` in it: powers of two have exact reciprocals there."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return (_update_scale if func is torch._amp_update_scale_ else func)(*args, **(kwargs or {}))

    def double(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.detach()


class GradScaler(torch.amp.GradScaler):
    """A gradient scaler for devices without float64.

    PyTorch's own takes the reciprocal of its scale in float64, and its XPU kernel multiplies the scale by factors in
    float64 (torch-xpu-ops, AmpKernels.cpp). An Arc A card refuses both: "Required aspect fp64 is not supported on the
    device" (torch-xpu-ops#1742, pytorch#147731). Its state is that of `torch.amp.GradScaler`.
    """

    def _lazy_init_scale_growth_tracker(self, dev: torch.device) -> None:
        super()._lazy_init_scale_growth_tracker(dev)
        self._scale: torch.Tensor | None
        if self._scale is not None:
            # Not as_subclass(): while a user's TorchDispatchMode is on, it raises in PyTorch 2.5.
            self._scale = torch.Tensor._make_subclass(_Scale, self._scale)


def _update_scale(
    scale: torch.Tensor,
    growth_tracker: torch.Tensor,
    found_inf: torch.Tensor,
    growth_factor: float,
    backoff_factor: float,
    growth_interval: int,
) -> torch.Tensor:
    """Do what `torch._amp_update_scale_` does, in float32 and without a sync."""
    skipped = found_inf != 0
    growth_tracker.add_(1)
    grown = scale * growth_factor
    due = growth_tracker == growth_interval
    kept = torch.where(due & grown.isfinite(), grown, scale)
    scale.copy_(torch.where(skipped, scale * backoff_factor, kept))
    growth_tracker.masked_fill_(skipped | due, 0)
    return scale
