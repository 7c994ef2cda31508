"""The one module that asks `torch.xpu` what is there, what it can do, and which of it was asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .errors import (
    DuplicateDeviceError,
    NoSuchXPUError,
    NoXCCLError,
    NoXPUError,
    Problem,
    UnknownDeviceError,
    WrongBuildError,
)
from .remedies import CLIENT_DRIVERS as CLIENT_DRIVERS
from .remedies import PYTORCH_PACKAGES
from .remedies import XPU_WHEELS as XPU_WHEELS
from .versions import torch_release

__all__ = ["Available", "DeviceInfo", "available", "empty_cache", "info", "of_rank", "resolve", "why_none"]

_WSL_DEVICE = "/dev/dxg"  # instead of /dev/dri/renderD*
_SELECTOR = "ONEAPI_DEVICE_SELECTOR"
_MASKS = ("ZE_AFFINITY_MASK", _SELECTOR)
_NO_DEVICES = "No XPU devices are available"  # what PyTorch raises where there is none
_TRIAL = 'python -c "import torch; torch.xpu.init()"'

# Lifts the limit of a single allocation (unified-runtime#1245). Kernels address what is beyond it since PyTorch 2.8,
# which builds them with -cl-intel-greater-than-4GB-buffer-required (torch-xpu-ops, cmake/BuildFlags.cmake). With an
# older one the allocation succeeds, and addresses wrap.
_RELAXED_LIMITS, _LIFTED_SINCE = "UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS", (2, 8)
_ALLOCATION_LIMIT = 4 << 30
_HOST_RESERVE = 2 << 30, 8  # bytes, and one part in so many of the host's memory: the larger is kept for the host

# How integrated GPUs are called: "Arc(TM) Graphics" and "Arc(TM) 140V GPU" are, "Arc(TM) B580 Graphics" isn't.
_INTEGRATED = re.compile(r"Arc\(TM\) (Pro )?(Graphics|\w+ GPU)|Iris\(R\) Xe Graphics|UHD Graphics|Intel\(R\) Graphics$")
# Their PCI ids from Rocket Lake to Wildcat Lake (Linux, include/drm/intel/pciids.h). A driver that doesn't know a name
# for its GPU, discrete or not, says "Intel(R) Graphics [0x64a0]" with it.
_INTEGRATED_IDS = re.compile(r"(46|4c|64|7d|9a|a7|b0)..|b640|fd8.")
_BRACKETED_ID = re.compile(r"\[0x([0-9a-f]{4})\]", re.IGNORECASE)
_XE_HPC_OR_XE2 = re.compile(r"12\.6[01]\.|[2-9]\d\.")  # versions of the graphics IP

# What Ultralytics itself understands: these requests are handed on as they are.
_UPSTREAM_DEVICE = re.compile(r"(cpu|mps)(:\d+)?|cuda(:\d+(,(cuda:)?\d+)*)?|(npu|tpu|intel|vulkan)(:.*)?")
_INDICES = re.compile(r"-?\d+(,-?\d+)*")


class Available(NamedTuple):
    """The memory that this process can have on a device beside what it holds.

    Attributes:
        size: How many bytes.
        basis: Out of which figures that was computed.
    """

    size: int
    basis: str


@dataclass(frozen=True)
class DeviceInfo:
    """What one XPU is and can do.

    Attributes:
        index: Its index in this process, as in `xpu:index`.
        name: The driver's name for it, such as "Intel(R) Arc(TM) B580 Graphics".
        total_memory: Its memory in bytes; an integrated GPU shares it with the host.
        has_fp16: Whether kernels may compute in float16.
        has_fp64: Whether kernels may compute in float64. Arc A cards can't (pytorch#147731, torch-xpu-ops#1742).
        has_matrix_units: Whether it has XMX units, which make bf16 and fp16 fast.
        has_tf32: Whether these compute in tf32, too; those of Arc A cards don't.
        integrated: Whether it is part of the processor.
        driver: The driver's version.
        allocation_limit: The size in bytes from which a single allocation is refused; None where any size may be had.
    """

    index: int
    name: str
    total_memory: int
    has_fp16: bool
    has_fp64: bool
    has_matrix_units: bool
    has_tf32: bool
    integrated: bool
    driver: str
    allocation_limit: int | None = None

    @property
    def device(self) -> torch.device:
        """The device as PyTorch names it."""
        return torch.device("xpu", self.index)

    def __str__(self) -> str:
        name = re.sub(r"\((R|TM|C)\)", "", self.name).strip()
        return f"xpu:{self.index} {name}"

    def reserved_memory(self) -> int:
        """Return the bytes that PyTorch's allocator holds on the device, in use or cached; 0 where it can't tell."""
        query = getattr(torch.xpu, "memory_reserved", None)
        return int(query(self.index)) if query else 0

    def free_memory(self) -> int | None:
        """Return the bytes that are free on the device, or None where the driver can't tell.

        Integrated GPUs, and some discrete ones in containers, raise "doesn't support querying the available free
        memory" (pytorch#159728, ComfyUI#9024); torch before 2.6 has no such query. Where a driver counts nothing as
        free it can't tell either: idle cards were seen with that (vLLM#49482, #53990).
        """
        query = getattr(torch.xpu, "mem_get_info", None)
        if query is None:
            return None
        try:
            return int(query(self.index)[0]) or None
        except RuntimeError:
            return None

    def available_memory(self) -> Available:
        """Return the memory that this process can still have.

        An integrated GPU's is the host's, so the host is asked how much of it is free, and keeps a reserve: an eighth
        of its memory, at least 2 GiB, for the data loader's workers and everything else on the machine. The driver
        isn't asked there: it counts what Linux can reclaim as in use (vLLM#40295). The same holds for a GPU whose free
        memory nobody knows and which has more than half of the host's, as an integrated one does.
        """
        free = None if self.integrated else self.free_memory()
        if free is not None:
            return Available(free, "free by the driver's count")
        import psutil  # what Ultralytics asks, too

        host = psutil.virtual_memory()
        unheld = max(self.total_memory - self.reserved_memory(), 0)
        if self.integrated or self.total_memory > host.total // 2:
            least, part = _HOST_RESERVE
            kept = max(least, host.total // part)
            figures = f"{host.available / 2**30:.1f} GiB free on the host, less {kept / 2**30:.1f} GiB kept for it"
            if host.available - kept < unheld:
                return Available(max(host.available - kept, 0), figures)
        return Available(unheld, "the device's memory, less what PyTorch holds")

    def can_count_memory(self) -> bool:
        """Whether PyTorch can tell how much memory it holds on the device, as 2.5.1 and later can."""
        return hasattr(torch.xpu, "memory_reserved")


def _is_compiled() -> bool:
    return bool(torch.xpu._is_compiled())


def may_be_any() -> bool:
    """Whether there may be an XPU, asked without initializing one: `count()` tells."""
    return _is_compiled() and bool(torch.xpu.device_count())


def count() -> int:
    """Return how many XPUs this process sees, which initializes them.

    Before, PyTorch counts by another library, which knows nothing of `ONEAPI_DEVICE_SELECTOR` (torch/xpu/__init__.py,
    `device_count`).
    """
    return 0 if not _is_compiled() or _initialization_error() else int(torch.xpu.device_count())


def _initialization_error() -> str:
    """Return the first line of the error in initializing the XPUs, "" where there is none."""
    try:
        torch.xpu.init()
    except Exception as error:  # a RuntimeError, or what calls that were waiting for it raise
        return (str(error).strip() or repr(error)).splitlines()[0]
    return ""


def info(index: int) -> DeviceInfo:
    """Describe one XPU.

    Args:
        index: An index below `count()`.
    """
    p: Any = torch.xpu.get_device_properties(index)

    def has(name: str) -> bool:  # older releases of torch know fewer properties
        return bool(getattr(p, name, False))

    return DeviceInfo(
        index=index,
        name=str(p.name),
        total_memory=int(p.total_memory),
        has_fp16=has("has_fp16"),
        has_fp64=has("has_fp64"),
        has_matrix_units=has("has_subgroup_matrix_multiply_accumulate"),
        has_tf32=has("has_subgroup_matrix_multiply_accumulate_tensor_float32"),
        integrated=_is_integrated(p),
        driver=str(getattr(p, "driver_version", "unknown")),
        allocation_limit=_allocation_limit(p),
    )


def _is_integrated(properties: Any) -> bool:
    """Whether a GPU is part of the processor, by what PyTorch tells since 2.13, or else its PCI id or its name."""
    told = getattr(properties, "is_integrated_gpu", None)
    if told is not None:
        return bool(told)
    name = str(properties.name)
    bracketed = _BRACKETED_ID.search(name)
    number = getattr(properties, "device_id", None) or int(bracketed[1] if bracketed else "0", 16)
    return bool(_INTEGRATED_IDS.fullmatch(f"{number:04x}") or _INTEGRATED.search(name))


def empty_cache(index: int, *, wait: bool = True) -> None:
    """Give back the memory that PyTorch caches, once the device's work is done.

    Where it was given back before, results that were pending came out as NaN (pytorch#197520: torch 2.14 on Windows).

    Args:
        index: The XPU that this process computes on.
        wait: Whether to wait for its work; else results that are pending are at risk.
    """
    if wait:
        torch.xpu.synchronize(index)
    torch.xpu.empty_cache()


def _allocation_limit(properties: Any) -> int | None:
    """Return the size from which Level Zero refuses a single allocation; torch knows, but doesn't tell Python.

    Intel's driver sets 4 GiB where kernels address buffers by 32 bits: before Xe-HPC (Max) and Xe2 (Battlemage, Lunar
    Lake). The same generations lack 2D block loads (intel/compute-runtime, compiler_product_helper_before_xe_hpc.inl).
    Seen on an A770 (intel-xpu-backend-for-triton#7477), not on a B70 (compute-runtime#998).
    """
    newer = _XE_HPC_OR_XE2.match(str(getattr(properties, "version", "")))
    if newer or getattr(properties, "has_subgroup_2d_block_io", False):
        return None
    return None if _asks_to_lift_limit() and torch_release() >= _LIFTED_SINCE else _ALLOCATION_LIMIT


def _asks_to_lift_limit() -> bool:
    value = os.environ.get(_RELAXED_LIMITS, "").strip()
    return value.isdigit() and int(value) > 0


def limit_of_allocations() -> str:
    """Say why nothing as large as `DeviceInfo.allocation_limit` can be had, and what lifts the limit, as a sentence."""
    if torch_release() >= _LIFTED_SINCE:
        return f"the device refuses more unless {_RELAXED_LIMITS}=1 is set"
    unset = f", so unset {_RELAXED_LIMITS}, with which results may be wrong" * _asks_to_lift_limit()
    return f"kernels of PyTorch before 2.8 can't address more{unset}"


def available() -> list[DeviceInfo]:
    """Describe every XPU that this process sees, in the order of their indices."""
    return [info(i) for i in range(count())]


def why_none() -> Problem | None:
    """Say why there is no XPU, or return None where there is one."""
    if count():
        return None
    if not _is_compiled():
        return Problem(
            seen=f"this PyTorch ({torch.__version__}) is built without XPU support",
            # Where any torch is installed, pip finds the requirement met and changes nothing.
            remedy=f"Install an XPU build in its place: `pip uninstall -y {PYTORCH_PACKAGES}`, then `{XPU_WHEELS}`.",
        )
    masks = {k: os.environ[k] for k in _MASKS if os.environ.get(k)}
    if masks:
        shown = ", ".join(f"{k}={v!r}" for k, v in masks.items())
        example = " (such as level_zero:0, because PyTorch uses no other backend)" * (_SELECTOR in masks)
        return Problem(
            seen=f"PyTorch has XPU support, but sees no XPU with {shown}",
            remedy=f"Unset {' and '.join(masks)}, or name a device that exists{example}, before Python starts.",
        )
    error = _initialization_error()
    if error and _NO_DEVICES not in error:
        return Problem(
            seen=f"PyTorch has XPU support, but initializing the XPU failed: {error.rstrip('.')}",
            remedy=f"`{_TRIAL}` in a fresh process shows whether PyTorch alone can.",
        )
    if os.name == "nt":
        remedy = "Install or update Intel's graphics driver with the Intel Driver & Support Assistant, then restart."
    elif os.path.exists(_WSL_DEVICE):
        remedy = (
            "In WSL the GPU is that of Windows: update Intel's graphics driver there, and install Level Zero here "
            "(`sudo apt install libze1 libze-intel-gpu1`)."
        )
    else:
        remedy = (
            f"Install Intel's GPU driver ({CLIENT_DRIVERS}), and let this user read /dev/dri/renderD* "
            "(`sudo usermod -aG render $USER`, then log in again)."
        )
    return Problem(seen="PyTorch has XPU support, but the driver shows no XPU", remedy=remedy)


def describe() -> str:
    """Say in one phrase which XPUs this process sees."""
    found = available()
    if not found:
        return "no XPU"
    return f"{len(found)} XPU{'s' if len(found) > 1 else ''} ({', '.join(map(str, found))})"


def resolve(requested: object, *, prefer_xpu: bool) -> tuple[int, ...] | None:
    """Decide which XPUs a device request means.

    Args:
        requested: What Ultralytics takes as `device`: None, a string, an index, a `torch.device`, or a list or tuple of
            these.
        prefer_xpu: Whether no request at all means the XPU, even where there is a CUDA device.

    Returns:
        The indices of the XPUs, or None where the request isn't ours: a CPU, CUDA, MPS … device, or nothing asked and
        no XPU here. Then Ultralytics' own choice stands.

    Raises:
        UnknownDeviceError: The request is not a valid device.
        DuplicateDeviceError: A device is named twice.
        NoXPUError: An XPU is asked for, and there is none (`WrongBuildError` if PyTorch can't have one).
        NoSuchXPUError: An index that this process doesn't see.
    """
    if isinstance(requested, torch.device) and requested.type not in {"xpu", "cuda", "cpu", "mps"}:
        return None
    text = _canonical(requested)
    cuda = torch.cuda.is_available()
    if text in {"", "none"}:
        return (_current(),) if (prefer_xpu or not cuda) and count() else None
    if text.startswith("xpu"):
        if not re.fullmatch(r"xpu(:\d+(,\d+)*)?", text):
            raise _unknown(requested)
        if reason := why_none():
            error = NoXPUError if _is_compiled() else WrongBuildError
            raise error(
                f"Asked for {text}, but {reason.seen}. {reason.remedy} (device='cpu' trains without it, slowly.)",
                requested=requested,
                seen=reason.seen,
            )
        indices = text[4:]
        return _checked(requested, indices.split(",")) if indices else (_current(),)
    if _INDICES.fullmatch(text):
        if cuda or not count():
            return None
        return _checked(requested, text.split(","))
    if _UPSTREAM_DEVICE.fullmatch(text) or not (prefer_xpu or count()):
        return None
    raise _unknown(requested)


def of_rank(requested: object, local_rank: int, *, prefer_xpu: bool) -> int | None:
    """Decide which XPU one of several processes trains on that a launcher started on this machine.

    Args:
        requested: As for `resolve`: "xpu" means an XPU for each process, a list names them in the order of the ranks,
            and the one index that is `local_rank` names this process's own, as in scripts for torchrun.
        local_rank: The process's rank on this machine.
        prefer_xpu: As for `resolve`.

    Returns:
        The index of the XPU, or None where the request isn't ours.

    Raises:
        DeviceError: As for `resolve`.
        NoSuchXPUError: There are fewer XPUs than processes.
    """
    indices = resolve(requested, prefer_xpu=prefer_xpu)
    if indices is None:
        return None
    if _canonical(requested) in {"", "none", "xpu"}:
        indices = tuple(range(count()))
        if len(indices) == 1 and any(os.environ.get(name) for name in _MASKS):
            return 0  # the launcher, or its script, shows each process one of its own
    if indices == (local_rank,):
        return local_rank
    if local_rank >= len(indices):
        names = ",".join(map(str, indices))
        raise NoSuchXPUError(
            f"This is process {local_rank + 1} on this machine, but device={requested!r} means xpu:{names} here, one "
            f"for a process. Use device='xpu', which gives each process its own, and start as many processes as XPUs; "
            f"this one sees {describe()}.",
            requested=requested,
            seen=describe(),
        )
    return indices[local_rank]


def check_collectives(indices: Sequence[int], world_size: int = 1) -> None:
    """See that PyTorch can train on several XPUs, before a process is started for each.

    Args:
        indices: The XPUs of a run.
        world_size: How many processes it has by now.

    Raises:
        NoXCCLError: There are several, and this PyTorch was built without XCCL, as it was before 2.8 (pytorch#154963),
            and is on Windows.
    """
    has_xccl = getattr(torch.distributed, "is_xccl_available", None)  # new in 2.6
    if max(len(indices), world_size) < 2 or (has_xccl is not None and has_xccl()):
        return
    asked = "xpu:" + ",".join(map(str, indices))
    together = f" in {world_size} processes" if world_size > 1 else ""
    raise NoXCCLError(
        f"Asked for {asked}{together}, but this PyTorch ({torch.__version__}) was built without XCCL, by which XPUs "
        f"train together. XPU builds have it since 2.8, on Linux: `{XPU_WHEELS} --upgrade` installs a newer PyTorch "
        f"there. Use one device, device='xpu:{indices[0]}', or xpu_gloo=True, which exchanges gradients by way of the "
        "host and is slower.",
        requested=asked,
        seen=describe(),
    )


def _canonical(requested: object) -> str:
    """Write any device request as "xpu", "xpu:0,1", "0,1", or another lower-case string without blanks."""
    if requested is None:
        return ""
    if hasattr(requested, "tolist"):  # NumPy's integers and arrays
        requested = requested.tolist()
    if isinstance(requested, Sequence) and not isinstance(requested, (str, bytes)):
        text = ",".join(str(d) for d in requested)
    else:
        text = str(requested)
    text = re.sub(r"\s*([,:])\s*", r"\1", re.sub(r"[()\[\]'\"]", "", text)).strip().lower().strip(",")
    if text.startswith("xpu"):  # "xpu:0,xpu:1" -> "xpu:0,1"
        head, *rest = text.split(",")
        text = ",".join([head, *(d.removeprefix("xpu:") for d in rest)])
    return text


def _current() -> int:
    return int(torch.xpu.current_device())


def _checked(requested: object, indices: list[str]) -> tuple[int, ...]:
    """Turn index strings into XPU indices, "-1" into an idle one."""
    n = count()
    named = [int(i) for i in indices if int(i) >= 0]
    if len(named) != len(set(named)):
        raise DuplicateDeviceError(
            f"Asked for device={requested!r}, which names a device twice. Each device takes part once; this process "
            f"sees {describe()}.",
            requested=requested,
            seen=describe(),
        )
    wrong = [i for i in named if i >= n] or [int(i) for i in indices if int(i) < -1]
    if wrong or len(indices) > n:
        masks = [f"{k}={os.environ[k]!r}" for k in _MASKS if os.environ.get(k)]
        hint = f", or check {' and '.join(masks)}" if masks else ""
        missing = f"xpu:{wrong[0]}" if wrong else f"{len(indices)} XPUs"
        raise NoSuchXPUError(
            f"Asked for {missing}, but this process sees {describe()}. Use device='xpu:{n - 1}'{hint}.",
            requested=requested,
            seen=describe(),
        )
    idle = iter(sorted((i for i in range(n) if i not in named), key=_busy_bytes))
    return tuple(int(i) if int(i) >= 0 else next(idle) for i in indices)


def _busy_bytes(index: int) -> int:
    """Return how much of a device's memory is in use, by anyone where the driver tells, else by this process."""
    device = info(index)
    free = device.free_memory()
    return device.reserved_memory() if free is None else device.total_memory - free


def _unknown(requested: object) -> UnknownDeviceError:
    return UnknownDeviceError(
        f"device={requested!r} is not a valid device. This process sees {describe()}. Use device='xpu', 'xpu:0', "
        "'xpu:0,1', an index, or a device that Ultralytics knows, such as 'cpu' or 'cuda:0'.",
        requested=requested,
        seen=describe(),
    )
