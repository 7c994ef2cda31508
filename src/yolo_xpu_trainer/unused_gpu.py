"""An Intel GPU in this machine that this PyTorch can't use, since its build has no XPU support: said once a process.

Without it a forgotten XPU wheel is a training on the CPU, in which nothing says XPU. Looked for in a few small files of
the kernel (1 ms on Linux), in Windows' registry, or among the drivers that Windows hands to WSL: no program is started.
"""

from __future__ import annotations

import logging
import threading

import torch

from . import devices
from .diagnosis import Machine
from .diagnosis.gpus import described, family_of, gpus, has_driver_of_wsl, of_registry
from .remedies import HARDWARE

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
    found = _found(Machine())
    if found and (problem := devices.why_none()):
        _LOGGER.warning(
            f"XPU: {found} isn't used, because {problem.seen}: this runs on the CPU. {problem.remedy} "
            "`yolo-xpu init` says more; with device='cpu' this isn't said."
        )


def _found(machine: Machine) -> str:
    """Name a GPU that PyTorch supports and the system has a driver for, "" where there is none."""
    if machine.is_windows:
        found = [described(device) for device in of_registry(machine) if family_of(device).listed]
    elif machine.glob("/dev/dri", "renderD*"):
        found = [str(gpu) for gpu in gpus(machine) if gpu.family.listed]
    else:
        found = []
    if not found and has_driver_of_wsl(machine):  # which may have a /dev/dri without a GPU
        return f"an Intel GPU of Windows, which qualifies if {HARDWARE} lists it,"
    return found[0] if found else ""
