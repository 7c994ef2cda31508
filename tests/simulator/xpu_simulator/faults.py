"""Faults to order.

Launch numbers count kernels from the moment the order is given: 1 is the next kernel.
"""

from __future__ import annotations

import os

from . import native

VARIABLE = "XPU_SIMULATOR_FAULTS"

OUT_OF_DEVICE_MEMORY = "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"
OUT_OF_RESOURCES = "UR_RESULT_ERROR_OUT_OF_RESOURCES"

_CODES = {OUT_OF_DEVICE_MEMORY: 39, OUT_OF_RESOURCES: 40}


def out_of_memory(at_launch: int = 1, text: str | None = None) -> None:
    """Let a kernel run out of memory.

    Args:
        at_launch: Which kernel.
        text: None for `torch.OutOfMemoryError` as the caching allocator raises it; the name of an error of the unified
            runtime, such as `OUT_OF_RESOURCES`, for the `RuntimeError` that shows it raw; any other text as it is.
    """
    if text in _CODES:
        text = f"level_zero backend failed with error: {_CODES[text]} ({text})"
    native.call("order_out_of_memory", at_launch, (text or "").encode())


def device_lost(at_launch: int = 1) -> None:
    """Let the device be lost at a kernel: it and everything after it on the device fails."""
    native.call("order_device_lost", at_launch)


def mem_get_info() -> None:
    """Let `torch.xpu.mem_get_info` fail, as on GPUs that can't tell their free memory."""
    native.call("order_no_free_memory_query")


def clear() -> None:
    """Withdraw all orders, and bring a lost device back."""
    native.call("clear_faults")


def order_from_environment() -> None:
    """Order what `XPU_SIMULATOR_FAULTS` lists, for processes that only the environment reaches.

    The list is separated by commas: `oom@120`, `resources@120`, `lost@300`, `mem_get_info`.

    Raises:
        ValueError: An entry is none of these.
    """
    for entry in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        kind, _, launch = entry.partition("@")
        at_launch = int(launch or 1)
        if kind == "oom":
            out_of_memory(at_launch)
        elif kind == "resources":
            out_of_memory(at_launch, OUT_OF_RESOURCES)
        elif kind == "lost":
            device_lost(at_launch)
        elif kind == "mem_get_info":
            mem_get_info()
        else:
            raise ValueError(
                f"{VARIABLE} has {entry!r}; it takes oom@N, resources@N, lost@N and mem_get_info, separated by commas."
            )
