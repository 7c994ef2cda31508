"""What `torch.xpu` expects of a build with XPU support: `torch._C._xpu_*` and three base classes."""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from . import clock, faults, graphs, native, profiles

TORCH_VERSION_XPU = "20260000"  # the SYCL compiler's version, in torch.version.xpu of XPU builds

DEVICE_TYPE = 12  # c10::DeviceType::XPU


def _lost() -> None:
    native.check("check_alive")


# ---------------------------------------------------------------------------------------------------------- classes


class DeviceProperties:
    """Stands for `torch._C._XpuDeviceProperties`: the profile's properties, with an identity.

    It has those that this release of torch tells.
    """

    def __init__(self, properties: profiles.Properties, index: int, total_memory: int, hidden: frozenset[str]) -> None:
        known: dict[str, Any] = {
            **{each.name: getattr(properties, each.name) for each in fields(properties)},
            "total_memory": total_memory,
            "sub_group_sizes": list(properties.sub_group_sizes),
            "architecture": properties.architecture,
            "uuid": f"8680{properties.device_id:04x}-0000-0000-0000-{index + 1:012x}",
        }
        vars(self).update({name: value for name, value in known.items() if name not in hidden})

    def __repr__(self) -> str:
        shown = {name: show(value) for name, show in _SHOWN.items() if (value := vars(self).get(name)) is not None}
        return f"_XpuDeviceProperties({', '.join(f'{name}={text}' for name, text in shown.items())})"


def _kilobytes(size: int) -> str:
    return f"{size >> 10}KB"


# What a description shows, in torch's order.
_SHOWN: dict[str, Callable[[Any], str]] = {
    "name": repr,
    "platform_name": repr,
    "type": repr,
    "device_id": lambda number: f"0x{number:X}",
    "uuid": str,
    "driver_version": repr,
    "total_memory": lambda size: f"{size >> 20}MB",
    "local_mem_size": _kilobytes,
    "last_level_cache_size": _kilobytes,
    "max_compute_units": str,
    "memory_clock_rate": lambda rate: f"{rate}MHz",
    "memory_bus_width": lambda width: f"{width}-bit",
    "gpu_eu_count": str,
    "gpu_subslice_count": str,
    "max_work_group_size": str,
    "max_num_sub_groups": str,
    "sub_group_sizes": lambda sizes: f"[{' '.join(map(str, sizes))}]",
    "has_fp16": lambda has: f"{has:d}",
    "has_fp64": lambda has: f"{has:d}",
    "has_atomic64": lambda has: f"{has:d}",
    "is_integrated_gpu": lambda is_one: f"{is_one:d}",
}


def release() -> tuple[int, int]:
    """Return this torch's major and minor version."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def hidden_properties(release: tuple[int, int], without: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the names of properties that a release of torch doesn't tell of a device."""
    return without | {name for name, (since, _) in profiles.PROPERTIES_SINCE.items() if release < since}


class StreamBase(torch.Stream):
    """Stands for `torch._C._XpuStreamBase`."""

    def __new__(
        cls,
        priority: int = 0,
        stream_id: int | None = None,
        device_index: int | None = None,
        device_type: int | None = None,
        stream_ptr: int | None = None,
    ) -> StreamBase:
        make: Any = super().__new__
        if stream_id is None or device_index is None:
            return make(cls, device=torch.device("xpu", native.call("current_device")), priority=priority)  # type: ignore[no-any-return]
        return make(cls, stream_id=stream_id, device_index=device_index, device_type=device_type)  # type: ignore[no-any-return]

    @property
    def sycl_queue(self) -> int:
        """A number that is the queue's own, as its address is on hardware."""
        return self.device_index << 32 | 0x1000 + self.stream_id

    @property
    def priority(self) -> int:
        """Streams have one priority here."""
        return 0

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """Return the least and the greatest priority of hardware."""
        return (0, -1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, torch.Stream) and (self.stream_id, self.device) == (other.stream_id, other.device)

    def __hash__(self) -> int:
        return hash((self.stream_id, self.device))


class EventBase(torch.Event):
    """Stands for `torch._C._XpuEventBase`."""

    _recorded_at: float | None = None

    def __new__(cls, enable_timing: bool = False, interprocess: bool = False) -> EventBase:
        make: Any = super().__new__
        event: EventBase = make(cls, device="xpu", enable_timing=enable_timing)
        event._timed = enable_timing
        return event

    _timed: bool

    @property
    def sycl_event(self) -> int:
        """A number that is the event's own once it was recorded."""
        return self.event_id

    def record(self, stream: torch.Stream | None = None) -> None:
        """Record the event on a stream."""
        super().record(torch.xpu.current_stream() if stream is None else stream)
        self._recorded_at = clock.now()

    def elapsed_time(self, end_event: Any) -> float:
        """Return the milliseconds between two recorded events; `torch.Event` takes no subclass of itself here."""
        if not (self._timed and end_event._timed):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._recorded_at is None or end_event._recorded_at is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return float((end_event._recorded_at - self._recorded_at) * 1e3)


# -------------------------------------------------------------------------------------------------------- functions


def _init() -> None:
    _lost()
    if not native.call("device_count"):
        raise RuntimeError("No XPU devices are available.")
    native.call("register_fork_handler")
    native.call("hand_out_default_generators", 1)
    try:
        generators = tuple(torch.Generator(device=f"xpu:{i}") for i in range(native.call("device_count")))
    finally:
        native.call("hand_out_default_generators", 0)
    vars(torch.xpu).update(default_generators=generators, _get_device_properties=_properties)


def _properties(index: int) -> DeviceProperties:
    from .activation import CAPACITY_VARIABLE, current_profile

    faults.before_properties()
    profile = current_profile()
    properties = profile.properties
    if properties is None or not 0 <= index < native.call("device_count"):
        raise RuntimeError(f"The device index is out of range. It must be in [0, {native.call('device_count')}).")
    total = int(os.environ.get(CAPACITY_VARIABLE) or properties.total_memory)
    hidden = hidden_properties(release(), profile.without)
    return DeviceProperties(properties, native.call("physical_index", index), total, hidden)


def _count_before_initialization(visible: list[int]) -> int:
    """Stand for the count by Level Zero's Sysman: it knows all GPUs of the machine, and `ZE_AFFINITY_MASK` only.

    torch 2.14 asks it until it is initialized (torch/xpu/__init__.py), so that `ONEAPI_DEVICE_SELECTOR` counts later.
    """
    from .activation import current_profile

    devices = current_profile().devices
    return sum(index < devices for index in visible) if devices else -1


def _set_device(index: int) -> None:
    native.check("set_device", index)


def _exchange_device(index: int) -> int:
    before: int = native.call("current_device")
    if index >= 0:
        _set_device(index)
    return before


def _memory_info(index: int) -> tuple[int, int]:
    free, total = ctypes.c_int64(), ctypes.c_int64()
    native.check("memory_info", index, ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def _set_stream(stream_id: int, device_index: int, device_type: int) -> None:
    _set_device(device_index)
    native.call("set_current_stream", device_index, stream_id)


def _current_stream(index: int) -> tuple[int, int, int]:
    return native.call("current_stream", index), index, DEVICE_TYPE


def _native(name: str) -> Callable[..., Any]:
    """Wrap a function of the library: dynamo hashes every `torch._C._xpu_*`, and ctypes' own can't be hashed."""

    def function(*arguments: Any) -> Any:
        return native.call(name, *arguments)

    return function


def _functions() -> dict[str, Callable[..., Any]]:
    return {
        "_xpu_init": _init,
        "_xpu_getDeviceCount": _native("device_count"),
        "_xpu_getDevice": _native("current_device"),
        "_xpu_setDevice": _set_device,
        "_xpu_exchangeDevice": _exchange_device,
        "_xpu_maybeExchangeDevice": _exchange_device,
        "_xpu_isInBadFork": lambda: bool(native.call("is_in_bad_fork")),
        "_xpu_synchronize": lambda index: native.check("synchronize", index),
        "_xpu_emptyCache": _native("empty_cache"),
        "_xpu_memoryStats": lambda index: native.read_json("memory_stats", index),
        "_xpu_resetPeakMemoryStats": _native("reset_peak_stats"),
        "_xpu_resetAccumulatedMemoryStats": _native("reset_accumulated_stats"),
        "_xpu_getMemoryInfo": _memory_info,
        "_xpu_getMemoryFraction": _native("memory_fraction"),
        "_xpu_setMemoryFraction": lambda fraction, index: native.call("set_memory_fraction", index, fraction),
        "_xpu_memorySnapshot": lambda *_: {"segments": [], "device_traces": []},
        "_xpu_recordMemoryHistory": lambda *_, **__: None,
        "_xpu_getCurrentStream": _current_stream,
        "_xpu_getCurrentRawStream": lambda index: index << 32 | 0x1000 + native.call("current_stream", index),
        "_xpu_setStream": _set_stream,
        "_xpu_canDeviceAccessPeer": lambda device, peer: device == peer,
        "_xpu_getArchFlags": lambda: "pvc,bmg,dg2,arl-h,mtl-h,lnl-m".replace(",", " "),
        "_xpu_sleep": lambda cycles: None,
        **graphs.functions(),
    }


# ----------------------------------------------------------------------------------------------------- installation


def install() -> None:
    """Make `torch.xpu` that of a build with XPU support."""
    functions = _functions()
    vars(torch._C).update(
        functions,
        _has_xpu=True,
        _XpuStreamBase=StreamBase,
        _XpuEventBase=EventBase,
        _XpuDeviceProperties=DeviceProperties,
    )
    # torch.xpu.Stream and Event got their bases when torch was imported: make these two classes again.
    streams = importlib.reload(torch.xpu.streams)
    vars(torch.xpu).update(
        Stream=streams.Stream,
        Event=streams.Event,
        _XpuDeviceProperties=DeviceProperties,
        _exchange_device=_exchange_device,
        _maybe_exchange_device=_exchange_device,
        _is_in_bad_fork=functions["_xpu_isInBadFork"],
    )
    graphs.install()
    if hasattr(torch.xpu, "_raw_device_count_zes"):
        vars(torch.xpu)["_raw_device_count_zes"] = _count_before_initialization
    # A build with two accelerators is refused here and there; this one had no GPU for the other anyway.
    vars(torch.cuda)["_is_compiled"] = lambda: False
    if hasattr(torch.version, "xpu"):  # since 2.7
        torch.version.xpu = TORCH_VERSION_XPU


def forget() -> None:
    """Have `torch.xpu` ask for the devices again: the profile has changed."""
    was_initialized = torch.xpu._initialized
    vars(torch.xpu).update(_cached_device_count=None, _initialized=False)
    torch.xpu.get_device_capability.cache_clear()
    if hasattr(torch.xpu.device_count, "cache_clear"):  # until 2.13 or so
        torch.xpu.device_count.cache_clear()
    native.call("require_initialization")
    if was_initialized and native.call("device_count"):
        native.call("set_device", 0)
        torch.xpu._lazy_init()  # what `init` does, which a test may have replaced
