"""A row for `torch.compile`: Ultralytics looks whether a CPU or a CUDA device can do it, and not whether an XPU can."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch

from .. import compiling
from .rows import Row

__all__ = ["ROWS"]

_LOGGER = logging.getLogger("ultralytics")


def _attempt_compile(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def attempt_compile(*args: Any, **kwargs: Any) -> Any:
        """Compile a model, or say why it can't be on this XPU and return it as it is."""
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        device = torch.device(given.arguments["device"])
        if device.type != "xpu" or not given.arguments["mode"]:
            return original(*args, **kwargs)
        index = torch.xpu.current_device() if device.index is None else device.index
        if (found := compiling.obstacle(index)) is None:
            return original(*args, **kwargs)
        _LOGGER.warning(f"XPU: the model isn't compiled, for torch.compile doesn't work here: {found}")
        return given.arguments["model"]

    return attempt_compile


ROWS = [
    Row(
        target="ultralytics.utils.torch_utils:attempt_compile",
        why="torch.compile would fail in the midst of a run on an XPU, at the first forward pass",
        source="ultralytics/utils/torch_utils.py, attempt_compile: it asks for Triton on CUDA devices only",
        needed=lambda run, original: True,
        replacement=_attempt_compile,
        optional=True,  # before 8.3.200 or so Ultralytics doesn't compile
    )
]
