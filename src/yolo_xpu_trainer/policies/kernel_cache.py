"""SYCL's cache of kernels is left as it is, off unless the user has it on; where it is on and may crash, that is said.

`SYCL_CACHE_PERSISTENT=1` keeps kernels that the driver compiled from one process to the next. This package doesn't set
it: with SYCL runtimes from 2025.3 on it was seen to end processes with a segmentation fault, in reading
(llama.cpp#22053) and in writing (intel/llvm#22853). One place is `torch.topk` of PyTorch 2.13 (sglang#34567), by which
targets are assigned in every step.
"""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..run import Run

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")
_VARIABLE = "SYCL_CACHE_PERSISTENT"
_FIRST_THAT_CRASHES = "20250300"  # as PyTorch writes the SYCL runtime's version, since 2.7; no end to it is known


@hookimpl
def xpu_around_run(trainer: Any) -> AbstractContextManager[None]:
    """Warn where the cache is on and the runtime is one of those that crash, for a crash leaves no traceback."""
    run: Run = trainer.xpu
    runtime = getattr(torch.version, "xpu", None) or ""
    if os.environ.get(_VARIABLE) == "1" and runtime >= _FIRST_THAT_CRASHES and not run.is_worker:
        _LOGGER.warning(
            f"XPU: {_VARIABLE}=1 is set. With SYCL runtimes as new as this PyTorch's ({runtime}) it was seen to crash "
            "processes without a traceback, in torch.topk among others, which training a detector needs "
            f"(intel/llvm#22853, sglang#34567). If this run ends like that, unset {_VARIABLE}."
        )
    return nullcontext()
