"""Rows for memory queries that not every driver answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..devices import info
from ..run import Run
from .rows import Row

__all__ = ["ROWS"]


def _from_the_allocator(run: Run, original: Callable[..., tuple[int, int]]) -> Callable[..., tuple[int, int]]:
    def mem_get_info(device: Any = None) -> tuple[int, int]:
        """Return free and total bytes, free being what PyTorch itself hasn't reserved."""
        return run.device.total_memory - run.device.reserved_memory(), run.device.total_memory

    return mem_get_info


ROWS = [
    Row(
        target="torch.xpu:mem_get_info",
        why="integrated GPUs, and some discrete ones in containers, can't tell how much of their memory is free, and "
        "Ultralytics' AutoBatch asks outside of its `try`",
        source="pytorch#159728, ultralytics/utils/autobatch.py",
        needed=lambda run, original: info(run.device.index).free_memory() is None,
        replacement=_from_the_allocator,
        everywhere=False,
        optional=True,  # torch 2.5 has no such query, and Ultralytics copes
    )
]
