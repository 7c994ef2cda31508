"""Faults to order.

Launch numbers count kernels from the moment the order is given: 1 is the next kernel.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Literal

from . import native

VARIABLE = "XPU_SIMULATOR_FAULTS"

OUT_OF_DEVICE_MEMORY = "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"
OUT_OF_RESOURCES = "UR_RESULT_ERROR_OUT_OF_RESOURCES"
DEVICE_LOST = "UR_RESULT_ERROR_DEVICE_LOST"

_CODES = {OUT_OF_DEVICE_MEMORY: 39, OUT_OF_RESOURCES: 40}
_EXHAUSTED = {**_CODES, DEVICE_LOST: 20}

_properties: Callable[[], None] | None = None
_has_graphs = True


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


def exhaustion(error: str = OUT_OF_RESOURCES) -> None:
    """Let the driver give more memory than there is, and kernels fail as long as more is reserved.

    On hardware that is how most runs end that need too much (torch-xpu-ops#3155, #2757, #1324, #5432), unless
    `torch.xpu.set_per_process_memory_fraction` was called: then torch's allocator raises before (pytorch#177714).

    Args:
        error: What kernels raise: `OUT_OF_DEVICE_MEMORY`, `OUT_OF_RESOURCES`, or `DEVICE_LOST`, which stays.
    """
    native.call("order_exhaustion", _EXHAUSTED[error])


def device_lost(at_launch: int = 1) -> None:
    """Let the device be lost at a kernel: it and everything after it on the device fails."""
    native.call("order_device_lost", at_launch)


def mem_get_info() -> None:
    """Let `torch.xpu.mem_get_info` fail, as on GPUs that can't tell their free memory."""
    native.call("order_no_free_memory_query")


def properties(end: Literal["crash", "hang"]) -> None:
    """Let the next question for a device's properties end the process, or never end.

    A Level Zero loader that doesn't fit the driver gives a segmentation fault (pytorch#179891, intel/llvm#22834).

    Args:
        end: "crash", or "hang", which keeps the interpreter's lock: no other thread runs meanwhile.
    """
    global _properties
    _properties = _crash if end == "crash" else _hang


def no_xccl() -> None:
    """Let this torch be built without xccl, as wheels before 2.8 and those for Windows are (pytorch#154963)."""
    from . import collectives

    collectives.remove()


def no_graphs() -> None:
    """Let the device have no SYCL graphs: a capture raises the text of intel/llvm's graph_impl.cpp as it begins."""
    global _has_graphs
    _has_graphs = False


def before_capture() -> None:
    """Raise where there are no graphs."""
    if not _has_graphs:
        raise RuntimeError("level_zero backend is not supported by SYCL Graph extension.")


def clear() -> None:
    """Withdraw all orders, and bring a lost device back."""
    global _properties, _has_graphs
    from . import collectives

    native.call("clear_faults")
    _properties, _has_graphs = None, True
    collectives.restore()


def before_properties() -> None:
    """Do what was ordered for a question for properties."""
    if _properties:
        _properties()


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    while True:
        ctypes.PyDLL(None).pause()


_ORDERS: dict[str, Callable[[int], None]] = {
    "oom": out_of_memory,
    "resources": lambda at_launch: out_of_memory(at_launch, OUT_OF_RESOURCES),
    "lost": device_lost,
}
_LASTING: dict[str, Callable[[], None]] = {
    "mem_get_info": mem_get_info,
    "exhaustion_20": lambda: exhaustion(DEVICE_LOST),
    "exhaustion_39": lambda: exhaustion(OUT_OF_DEVICE_MEMORY),
    "exhaustion_40": lambda: exhaustion(OUT_OF_RESOURCES),
    "properties_crash": lambda: properties("crash"),
    "properties_hang": lambda: properties("hang"),
    "no_xccl": no_xccl,
    "no_graphs": no_graphs,
}


def order_from_environment() -> None:
    """Order what `XPU_SIMULATOR_FAULTS` lists, for processes that only the environment reaches.

    The list is separated by commas: `oom@120`, `resources@120`, `lost@300`, and without a number `mem_get_info`,
    `exhaustion_20`, `exhaustion_39`, `exhaustion_40`, `properties_crash`, `properties_hang`, `no_xccl`, `no_graphs`.

    Raises:
        ValueError: An entry is none of these.
    """
    for entry in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        kind, at, launch = entry.partition("@")
        if kind in _ORDERS:
            _ORDERS[kind](int(launch or 1))
        elif kind in _LASTING and not at:
            _LASTING[kind]()
        else:
            known = ", ".join([*(f"{name}@N" for name in _ORDERS), *_LASTING])
            raise ValueError(f"{VARIABLE} has {entry!r}; it takes {known}, separated by commas.")
