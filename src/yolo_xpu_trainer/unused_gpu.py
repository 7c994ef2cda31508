"""An Intel GPU in this machine that this PyTorch can't use, since its build has no XPU support: said once a process.

Without it a forgotten XPU wheel is a training on the CPU, in which nothing says XPU. Looked for on Linux only, in a few
small files of the kernel (1 ms); Windows would have to be asked by a program.
"""

from __future__ import annotations

import logging
import threading

import torch

from . import devices
from .diagnosis import Machine
from .diagnosis.gpus import gpus

__all__ = ["leave_unsaid", "tell"]

_LOGGER = logging.getLogger("ultralytics")
_said = threading.Event()


def tell() -> None:
    """Say, once a process, that a GPU which PyTorch supports is here and this build can't use it. It never raises.

    To be called where no device was asked for. Nothing is said where PyTorch has XPU support, whose absence of devices
    is another matter, or a CUDA device, which is used then.
    """
    if _said.is_set():
        return
    _said.set()
    try:
        if not torch.xpu._is_compiled() and not torch.cuda.is_available():
            _tell()
    except Exception as error:  # a run must not fail because of a hint
        _LOGGER.debug(f"XPU: looking for an Intel GPU failed: {error!r}")


def leave_unsaid() -> None:
    """Let `tell` say nothing in this process, where the same was said in another way."""
    _said.set()


def _tell() -> None:
    machine = Machine()
    if not machine.glob("/dev/dri", "renderD*"):
        return
    found = [gpu for gpu in gpus(machine) if gpu.family.listed]
    if found and (problem := devices.why_none()):
        _LOGGER.warning(
            f"XPU: {found[0]} isn't used, because {problem.seen}: this runs on the CPU. {problem.remedy} "
            "`yolo-xpu init` says more; with device='cpu' this isn't said."
        )
