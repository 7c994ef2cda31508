"""The gradient scaler of an fp16 run needs no float64, which Arc A cards don't have."""

from __future__ import annotations

from typing import Any

import torch

from ..hookspecs import hookimpl
from ..run import Run

__all__ = ["GradScaler"]


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Give the trainer a scaler for its device; one that does nothing where none is needed."""
    run: Run = trainer.xpu
    trainer.scaler = GradScaler("xpu", enabled=run.precision.needs_scaler)
    if run.precision.needs_scaler and (state := run.resumed.get("scaler")):
        trainer.scaler.load_state_dict(state)


class _Scale(torch.Tensor):
    """A scale that answers `.double()` in float32: powers of two, as scales are, have exact reciprocals there."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def double(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)  # type: ignore[no-untyped-call]


class GradScaler(torch.amp.GradScaler):
    """A gradient scaler for devices without float64.

    PyTorch's own takes the reciprocal of its scale in float64, which an Arc A card refuses: "Required aspect fp64 is
    not supported on the device" (torch-xpu-ops#1742, pytorch#147731). Its state is that of `torch.amp.GradScaler`.
    """

    def _lazy_init_scale_growth_tracker(self, dev: torch.device) -> None:
        super()._lazy_init_scale_growth_tracker(dev)
        self._scale: torch.Tensor | None
        if self._scale is not None:
            self._scale = self._scale.as_subclass(_Scale)  # type: ignore[no-untyped-call]
