"""What an error of an XPU means, whatever its text: memory ran out, or the device is lost.

::

    XPUTrainerError
    ├── DeviceLostError (also a RuntimeError)              nothing more can be computed on it in this process
    └── NotEnoughMemoryError (also a torch.OutOfMemoryError)   a run needs more memory than there is, whatever its batch

PyTorch's allocator raises `torch.OutOfMemoryError`; but the driver gives more memory than there is, and then a kernel
fails, with an error of the unified runtime: 39 (`OUT_OF_DEVICE_MEMORY`), 40 (`OUT_OF_RESOURCES`) or 20 (`DEVICE_LOST`).
Source: torch-xpu-ops#3155, #2757, #1324, #5432, pytorch#177714.
"""

from __future__ import annotations

import re

import torch

from .errors import XPUTrainerError

__all__ = ["DeviceLostError", "NotEnoughMemoryError", "is_lost", "is_of_device", "is_out_of_memory", "responds"]

_LOST = re.compile(r"DEVICE_LOST|\bdevice (was |is )?lost\b", re.IGNORECASE)
_MEMORY = re.compile(
    r"out of (device |host )?memory|OUT_OF_(DEVICE_|HOST_)?MEMORY|OUT_OF_RESOURCES|\bUR error:? ?\(?(39|40)\b",
    re.IGNORECASE,
)
_COLLECTIVE = re.compile(r"gloo/|Connection closed by peer|ProcessGroup|oneCCL|\bxccl\b", re.IGNORECASE)
_DRIVER = re.compile(r"UR_RESULT|PI_ERROR|\bUR error\b|Native API failed|level_zero backend failed", re.IGNORECASE)


class DeviceLostError(XPUTrainerError, RuntimeError):
    """An XPU is lost: the driver reset it, and nothing more can be computed on it in this process.

    Attributes:
        device: The XPU, as `xpu:0 Intel Arc B580 Graphics`.
        checkpoint: The path of the checkpoint that the run can go on from, "" where there is none.
    """

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: another process may go on

    def __init__(self, message: str, *, device: str, checkpoint: str) -> None:
        super().__init__(message)
        self.device = device
        self.checkpoint = checkpoint


class NotEnoughMemoryError(XPUTrainerError, torch.OutOfMemoryError):
    """A run needs more memory than its XPU has.

    Attributes:
        device: The XPU, as `xpu:0 Intel Arc B580 Graphics`.
        batch: The batch that was too large.
        checkpoint: The path of the checkpoint that the run can go on from, "" where there is none.
    """

    exit_status = 71  # EX_OSERR of sysexits.h

    def __init__(self, message: str, *, device: str, batch: int, checkpoint: str) -> None:
        super().__init__(message)
        self.device = device
        self.batch = batch
        self.checkpoint = checkpoint


def is_lost(error: BaseException) -> bool:
    """Whether an error says that a device is lost, which is never read as memory that ran out."""
    return isinstance(error, DeviceLostError) or (isinstance(error, RuntimeError) and bool(_LOST.search(str(error))))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory ran out. `OUT_OF_RESOURCES` may be a page fault: ask `responds`."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and not is_lost(error) and bool(_MEMORY.search(str(error)))


def is_of_device(error: BaseException) -> bool:
    """Whether an error is one of a device, its memory, or another rank, so that no code is to blame for it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or is_lost(error) or is_out_of_memory(error):
        return True
    return isinstance(error, RuntimeError) and bool(_DRIVER.search(str(error)) or _COLLECTIVE.search(str(error)))


def responds(device: torch.device) -> bool:
    """Whether a device still computes: one kernel, and a wait for it."""
    try:
        return bool((torch.ones(2, device=device) + 1).sum().item() == 4)
    except RuntimeError as error:
        return isinstance(error, torch.OutOfMemoryError)
