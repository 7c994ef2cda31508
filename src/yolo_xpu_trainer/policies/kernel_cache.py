"""Compiled kernels are kept: by oneDNN within a process, by SYCL between processes where that is safe.

`SYCL_CACHE_PERSISTENT=1` spares a process the compilation of kernels that another one had before. With SYCL runtimes
from 2025.3 on it was seen to end processes with a segmentation fault, in reading (llama.cpp#22053) and in writing
(intel/llvm#22853); one place is `torch.topk` of PyTorch 2.13 (sglang#34567), by which targets are assigned in every
step. There it is left as it is: off, unless the user has it on.

oneDNN compiles each convolution anew for each shape, type and layout, forwards and twice backwards, and keeps 1024 in a
process, unless told otherwise (oneDNN, src/common/primitive_cache.cpp). That is four shapes of a batch to a YOLO11n of
81 convolutions: with `multi_scale`, or batches of their own shapes in validation, it would compile in every epoch.
"""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..plugins import is_blocked
from ..run import Run

__all__ = ["keep", "may_crash", "runtime"]

_LOGGER = logging.getLogger("ultralytics")

_NAME = __name__.rpartition(".")[2]
VARIABLE = "SYCL_CACHE_PERSISTENT"
ONEDNN_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_PRIMITIVES = "8192"
_FIRST_THAT_CRASHES = "20250300"  # no end to it is known


def runtime() -> str:
    """Return the version of PyTorch's SYCL runtime, such as "20250001"; "" where it doesn't tell, before 2.7."""
    return getattr(torch.version, "xpu", None) or ""


def may_crash() -> bool:
    """Whether this PyTorch's SYCL runtime is one of those that crash."""
    return runtime() >= _FIRST_THAT_CRASHES


def keep() -> None:
    """Set what the user doesn't, before SYCL and oneDNN read it: when they are first used."""
    if not torch.xpu._is_compiled() or is_blocked(_NAME):
        return
    os.environ.setdefault(ONEDNN_VARIABLE, _PRIMITIVES)
    if not may_crash():
        os.environ.setdefault(VARIABLE, "1")


@hookimpl
def xpu_around_run(trainer: Any) -> AbstractContextManager[None]:
    """Warn, once a run, where the user has the cache on and the runtime is one of those that crash."""
    run: Run = trainer.xpu
    if os.environ.get(VARIABLE) == "1" and may_crash() and not run.is_worker:
        _LOGGER.warning(
            f"XPU: {VARIABLE}=1 is set. With SYCL runtimes as new as this PyTorch's ({runtime()}) it was seen "
            "to crash processes without a traceback, in torch.topk among others, which training a detector needs "
            f"(intel/llvm#22853, sglang#34567). If this run ends like that, unset {VARIABLE}."
        )
    return nullcontext()
