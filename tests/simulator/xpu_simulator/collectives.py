"""The `xccl` process group backend: gloo underneath."""

from __future__ import annotations

from typing import Any

from . import native

_removed = False


def install() -> None:
    """Make `torch.distributed` offer `xccl`, where this torch has collectives at all."""
    import torch.distributed as dist

    if not dist.is_available():
        return
    from torch.distributed import distributed_c10d as c10d

    native.call("install_collectives")
    _show(True)
    c10d.Backend.register_backend(
        "xccl",
        _create,
        extended_api=True,
        devices=["xpu"],
        _backend_type=dist.ProcessGroup.BackendType.XCCL,
    )


def _create(options: Any, _: Any) -> Any:
    from torch.distributed.distributed_c10d import ProcessGroupGloo

    if _removed:  # what a build without it says
        raise RuntimeError("Distributed package doesn't have XCCL built in")
    return ProcessGroupGloo(options.store, options.group_rank, options.group_size, timeout=options.timeout)


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
