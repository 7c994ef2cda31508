"""A row for prediction and validation on an XPU: in channels_last, as training is."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..options import Options
from .rows import Row

__all__ = ["ROWS"]


def _init(run: None, original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        """Make a backend, whose model works in channels_last on an XPU."""
        asked = kwargs.get("channels_last")
        if asked and _is_xpu(kwargs.get("device")):
            kwargs["channels_last"] = None  # True makes it warn that an XPU can't
        original(self, *args, **kwargs)
        model = getattr(getattr(self, "backend", self), "model", None)
        if isinstance(model, torch.nn.Module) and asked is not False and Options.current().channels_last:
            weight = next(model.parameters(), None)
            if weight is not None and _is_xpu(weight.device):
                model.to(memory_format=torch.channels_last)

    return __init__


def _is_xpu(device: Any) -> bool:
    return isinstance(device, torch.device) and device.type == "xpu"


ROWS = [
    Row(
        target="ultralytics.nn.autobackend:AutoBackend.__init__",
        why="it keeps to NCHW on every GPU but CUDA's",
        source="ultralytics/nn/autobackend.py",
        needed=lambda run, original: True,
        replacement=_init,
        everywhere=False,
    )
]
