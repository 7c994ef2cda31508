"""The GPUs that the simulator can be.

Names, identifiers and sizes are those that torch reports on such hardware where a report was found (Max 1550:
torch-xpu-ops#3891; the A770's memory: intel-xpu-backend-for-triton#7477), and Intel's published figures elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

MB = 1 << 20
GB = 1 << 30

MAX_DEVICES = 16  # as many as csrc/runtime/device.h has room for

PROPERTIES_SINCE: dict[str, tuple[tuple[int, int], str]] = {
    "architecture": ((2, 6), "pytorch#138186"),
    "device_id": ((2, 9), "pytorch#161392"),
    "uuid": ((2, 9), "pytorch#161392"),
    "local_mem_size": ((2, 11), "pytorch#171967"),
    "memory_clock_rate": ((2, 11), "pytorch#171967"),
    "memory_bus_width": ((2, 11), "pytorch#171967"),
    "last_level_cache_size": ((2, 13), "pytorch#184499"),
    "is_integrated_gpu": ((2, 13), "pytorch#182624"),
}
"""The properties that torch 2.5 doesn't tell, with the first release that does and where that can be read."""


@dataclass(frozen=True)
class Properties:
    """What `torch.xpu.get_device_properties` tells, under torch's names."""

    name: str
    device_id: int
    version: str
    total_memory: int
    max_compute_units: int
    gpu_eu_count: int
    gpu_subslice_count: int
    max_num_sub_groups: int
    sub_group_sizes: tuple[int, ...]
    local_mem_size: int
    last_level_cache_size: int
    memory_clock_rate: int
    memory_bus_width: int
    has_fp64: bool
    has_bfloat16_conversions: bool
    has_subgroup_matrix_multiply_accumulate: bool
    has_subgroup_matrix_multiply_accumulate_tensor_float32: bool
    has_subgroup_2d_block_io: bool
    is_integrated_gpu: bool
    driver_version: str = "1.6.33578+51"
    platform_name: str = "Intel(R) oneAPI Unified Runtime over Level-Zero (simulated)"
    vendor: str = "Intel(R) Corporation"
    type: str = "gpu"
    max_work_group_size: int = 1024
    has_fp16: bool = True
    has_atomic64: bool = True

    @property
    def architecture(self) -> int:
        """The SYCL architecture number: the version of the graphics IP, packed."""
        major, minor, revision = (int(part) for part in self.version.split("."))
        return (major << 22 | minor << 14 | revision) << 8


@dataclass(frozen=True)
class Costs:
    """How long a made-up GPU takes, in seconds, for what the counters count.

    Everything happens one after the other: nothing overlaps. Numbers are made up, so that a switch is known to be
    slow; no GPU was measured.

    Attributes:
        launch: A kernel.
        sync: A point where the host waits for the device.
        byte: A byte copied between host and device.
        channels_last: A convolution's kernel in channels_last, beside its launch.
        operators: A kernel of an operator, by its name, beside its launch.
    """

    launch: float = 0.0
    sync: float = 0.0
    byte: float = 0.0
    channels_last: float = 0.0
    operators: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """A machine: its devices, all of a kind, and how they behave.

    Attributes:
        properties: What every device tells of itself; None where there is no device.
        devices: How many devices the machine has.
        max_allocation: The size in bytes from which Level Zero refuses a single allocation; 0 for no such limit.
        reports_free_memory: Whether `mem_get_info` works; it raises otherwise.
        reports_no_memory_free: Whether it says that 0 bytes are free, whatever is.
        exhaustion: The error of the unified runtime (20, 39 or 40) that a kernel raises once memory has run out, where
            the driver gives more than there is; 0 where torch's allocator raises.
        without: Properties that torch doesn't tell here, beside those that came after its release.
        costs: What its events' times are made of; None where they are the wall clock's.
    """

    properties: Properties | None
    devices: int = 1
    max_allocation: int = 0
    reports_free_memory: bool = True
    reports_no_memory_free: bool = False
    exhaustion: int = 0
    without: frozenset[str] = frozenset()
    costs: Costs | None = None


PROFILES: dict[str, Profile] = {
    "arc-a770": Profile(
        Properties(
            name="Intel(R) Arc(TM) A770 Graphics",
            device_id=0x56A0,
            version="12.55.8",
            total_memory=15473 * MB,
            max_compute_units=512,
            gpu_eu_count=512,
            gpu_subslice_count=32,
            max_num_sub_groups=128,
            sub_group_sizes=(8, 16, 32),
            local_mem_size=64 << 10,
            last_level_cache_size=16 * MB,
            memory_clock_rate=2187,
            memory_bus_width=64,
            has_fp64=False,
            has_bfloat16_conversions=True,
            has_subgroup_matrix_multiply_accumulate=True,
            has_subgroup_matrix_multiply_accumulate_tensor_float32=False,
            has_subgroup_2d_block_io=False,
            is_integrated_gpu=False,
        ),
        max_allocation=4 * GB,
    ),
    "arc-b580": Profile(
        Properties(
            name="Intel(R) Arc(TM) B580 Graphics",
            device_id=0xE20B,
            version="20.1.4",
            total_memory=11605 * MB,
            max_compute_units=160,
            gpu_eu_count=160,
            gpu_subslice_count=20,
            max_num_sub_groups=64,
            sub_group_sizes=(16, 32),
            local_mem_size=128 << 10,
            last_level_cache_size=18 * MB,
            memory_clock_rate=2375,
            memory_bus_width=64,
            has_fp64=True,
            has_bfloat16_conversions=True,
            has_subgroup_matrix_multiply_accumulate=True,
            has_subgroup_matrix_multiply_accumulate_tensor_float32=True,
            has_subgroup_2d_block_io=True,
            is_integrated_gpu=False,
        )
    ),
    "core-ultra-155h": Profile(
        Properties(
            name="Intel(R) Arc(TM) Graphics",
            device_id=0x7D55,
            version="12.71.4",
            total_memory=29 * GB,
            max_compute_units=128,
            gpu_eu_count=128,
            gpu_subslice_count=16,
            max_num_sub_groups=128,
            sub_group_sizes=(8, 16, 32),
            local_mem_size=64 << 10,
            last_level_cache_size=4 * MB,
            memory_clock_rate=0,
            memory_bus_width=64,
            has_fp64=True,
            has_bfloat16_conversions=False,
            has_subgroup_matrix_multiply_accumulate=False,
            has_subgroup_matrix_multiply_accumulate_tensor_float32=False,
            has_subgroup_2d_block_io=False,
            is_integrated_gpu=True,
        ),
        reports_free_memory=False,
    ),
    "max-1550": Profile(
        Properties(
            name="Intel(R) Data Center GPU Max 1550",
            device_id=0x0BD5,
            version="12.60.7",
            total_memory=65520 * MB,
            max_compute_units=512,
            gpu_eu_count=512,
            gpu_subslice_count=64,
            max_num_sub_groups=64,
            sub_group_sizes=(16, 32),
            local_mem_size=128 << 10,
            last_level_cache_size=192 * MB,
            memory_clock_rate=3200,
            memory_bus_width=64,
            has_fp64=True,
            has_bfloat16_conversions=True,
            has_subgroup_matrix_multiply_accumulate=True,
            has_subgroup_matrix_multiply_accumulate_tensor_float32=True,
            has_subgroup_2d_block_io=True,
            is_integrated_gpu=False,
        ),
        devices=2,
    ),
    "none": Profile(None, devices=0),
}


def _variant(of: str, properties: dict[str, Any] | None = None, **more: Any) -> Profile:
    """Return a profile that differs from another in what is named."""
    base = PROFILES[of]
    assert base.properties is not None
    return replace(base, properties=replace(base.properties, **properties or {}), **more)


PROFILES |= {
    # Six cards of two tiles, as a node of Aurora has.
    "max-1550-x6": _variant("max-1550", devices=12),
    # A Core Ultra 7 258V under Linux and a torch before 2.13: the name is no product's, is_integrated_gpu isn't there,
    # and mem_get_info raises (pytorch#159728, #162909). Xe2 as the B580 is.
    "lunar-lake": _variant(
        "arc-b580",
        {
            "name": "Intel(R) Graphics [0x64a0]",
            "device_id": 0x64A0,
            "version": "20.4.4",
            "total_memory": 28 * GB,
            "max_compute_units": 64,
            "gpu_eu_count": 64,
            "gpu_subslice_count": 8,
            "last_level_cache_size": 8 * MB,
            "memory_clock_rate": 0,
            "is_integrated_gpu": True,
        },
        reports_free_memory=False,
        without=frozenset({"is_integrated_gpu"}),
    ),
    # Without libocloc every extension is answered with no (pytorch#196074).
    "arc-a770-no-matrix": _variant(
        "arc-a770",
        {
            "has_bfloat16_conversions": False,
            "has_subgroup_matrix_multiply_accumulate": False,
            "has_subgroup_matrix_multiply_accumulate_tensor_float32": False,
            "has_subgroup_2d_block_io": False,
        },
    ),
    # Discrete, and yet without figures, as a B70 with torch 2.7.1 (InvokeAI#9401) and cards in containers
    # (ComfyUI#9024).
    "arc-b580-no-free": _variant("arc-b580", reports_free_memory=False),
    # vLLM read 0 by a query of its own, on B60s, B70s and a Max 1550 (vLLM#49482, #53990, #47820), where torch's was
    # right; torch's has been wrong otherwise (pytorch#161381).
    "arc-b580-zero-free": _variant("arc-b580", reports_no_memory_free=True),
    # The driver gives more than there is, and kernels fail with UR_RESULT_ERROR_OUT_OF_RESOURCES (torch-xpu-ops#3155,
    # #5432), unless torch's allocator has a limit (pytorch#177714).
    "arc-b580-overcommits": _variant("arc-b580", exhaustion=40),
}

_ORDINARY = Costs(launch=10e-6, sync=50e-6, byte=1e-9)

# Made up: GPUs whose events tell a time that the counters give, each with one thing that is slow.
PROFILES |= {
    "made-up-even": _variant("arc-b580", costs=Costs(byte=1e-9)),  # whatever is switched copies the same bytes
    "made-up-slow-channels-last": _variant("arc-b580", costs=replace(_ORDINARY, channels_last=1e-3)),
    "made-up-slow-fused": _variant("arc-b580", costs=replace(_ORDINARY, operators={"aten::_fused_adamw_": 50e-3})),
    "made-up-slow-casts": _variant(
        "arc-b580", costs=replace(_ORDINARY, channels_last=1e-3, operators={"aten::_foreach_copy_": 20e-3})
    ),
}


def find(name: str) -> Profile:
    """Return a profile by its name, or raise `ValueError` with the names there are."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"No such profile: {name!r}. There are {', '.join(PROFILES)}.") from None
