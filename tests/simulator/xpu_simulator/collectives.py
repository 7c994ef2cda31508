"""The `xccl` process group backend: gloo underneath."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch

from . import native
from .torch_xpu import release

SINCE = (2, 8)  # older XPU builds have none (pytorch#154963)

_removed = False


def install() -> None:
    """Make `torch.distributed` offer `xccl`, where an XPU build of this release has it."""
    import torch.distributed as dist

    if not dist.is_available() or release() < SINCE:
        return
    from torch.distributed import distributed_c10d as c10d

    native.call("install_collectives")
    _show(True)
    vars(c10d)["ProcessGroupXCCL"] = _Group
    dist.barrier = c10d.barrier = _strict(c10d.barrier)
    register = getattr(c10d, "_register_builtin_xccl_backend", None)
    if register:  # later releases look the backend up; 2.8 knows it by name
        register()


class _Group:
    """Stands for `ProcessGroupXCCL`, which torch makes by this name."""

    Options = types.SimpleNamespace

    def __new__(cls, store: Any, rank: int, size: int, options: Any = None) -> Any:
        from torch.distributed import distributed_c10d as c10d

        timeout = getattr(options, "_timeout", c10d.default_pg_timeout)
        return c10d.ProcessGroupGloo(store, rank, size, timeout=timeout)


def _strict(barrier: Any) -> Any:
    """Return `torch.distributed.barrier` as XCCL does it: on the first of `device_ids`, which has to be there.

    Source: torch-xpu-ops, src/xccl/ProcessGroupXCCL.cpp.
    """

    @functools.wraps(barrier)
    def strict(group: Any = None, async_op: bool = False, device_ids: Any = None) -> Any:
        from torch.distributed import distributed_c10d as c10d

        if device_ids and c10d.get_backend(group) == "xccl" and device_ids[0] >= torch.xpu.device_count():
            raise RuntimeError(f"The device index is out of range. It must be in [0, {torch.xpu.device_count()}).")
        return barrier(group, async_op, device_ids)

    return strict


def remove() -> None:
    """Let this torch be built without xccl."""
    _show(False)


def restore() -> None:
    """Let this torch have xccl again."""
    if _removed:
        _show(True)


def _show(available: bool) -> None:
    global _removed
    from torch.distributed import distributed_c10d as c10d

    vars(c10d)["_XCCL_AVAILABLE"] = available
    _removed = not available
