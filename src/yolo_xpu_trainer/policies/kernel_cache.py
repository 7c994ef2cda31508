"""Where SYCL's cache of kernels is on and may crash the run, that is said beforehand: a crash leaves no traceback."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .. import kernel_cache
from ..hookspecs import hookimpl
from ..run import Run

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")


@hookimpl
def xpu_around_run(trainer: Any) -> AbstractContextManager[None]:
    """Warn, once a run, where the user has the cache on and the runtime is one of those that crash."""
    run: Run = trainer.xpu
    name = kernel_cache.VARIABLE
    if os.environ.get(name) == "1" and kernel_cache.may_crash() and not run.is_worker:
        _LOGGER.warning(
            f"XPU: {name}=1 is set. With SYCL runtimes as new as this PyTorch's ({kernel_cache.runtime()}) it was seen "
            "to crash processes without a traceback, in torch.topk among others, which training a detector needs "
            f"(intel/llvm#22853, sglang#34567). If this run ends like that, unset {name}."
        )
    return nullcontext()
