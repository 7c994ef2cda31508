"""Releases of PyTorch that compute something wrong on XPUs, without an error: a run on one is warned of.

PyTorch 2.13 has a new kernel for `topk` of 4096 elements and more, of which a detector has as many anchors from 448
pixels on. It was seen to return wrong indices (vllm-xpu-kernels#473, torch-xpu-ops#3777) and to fail (pytorch#191871).
With the driver 26.05 `nonzero` finds some of the true elements only (torch-xpu-ops#4396, sglang#31751). By both a loss
assigns targets to anchors.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..devices import XPU_WHEELS
from ..hookspecs import hookimpl
from ..run import Run
from ..versions import torch_release

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")


@hookimpl
def xpu_around_run(trainer: Any) -> AbstractContextManager[None]:
    """Warn, once a run, where PyTorch is such a release."""
    run: Run = trainer.xpu
    if torch_release() == (2, 13) and not run.is_worker:
        _LOGGER.warning(
            f"XPU: PyTorch {torch.__version__} was seen to compute `topk` wrongly on XPUs (vllm-xpu-kernels#473) and, "
            "with driver 26.05, `nonzero` (torch-xpu-ops#4396). Targets are assigned by both, so this run may learn "
            f"less than it should, without an error. Install another release: `{XPU_WHEELS} --upgrade`."
        )
    return nullcontext()
