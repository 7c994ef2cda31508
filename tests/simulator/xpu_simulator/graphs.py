"""What `torch.xpu.graphs` expects of a build with XPU support: the graph, its pools, and whether a stream records."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from . import faults, native

Pool = tuple[int, int]


def _check(name: str, *arguments: Any) -> None:
    if not native.call(name, *arguments):
        return
    text = native.call("last_graph_error").decode()
    raise torch.OutOfMemoryError(text) if text.startswith("XPU out of memory") else RuntimeError(text)


class GraphBase:
    """Stands for `torch._C._XPUGraph`."""

    _graph: int
    _keeps: bool
    _ends: str = ""

    def __new__(cls, keep_graph: bool = False) -> GraphBase:
        graph = super().__new__(cls)
        graph._graph, graph._keeps = native.call("graph_new"), keep_graph
        return graph

    def __del__(self) -> None:
        if hasattr(self, "_graph"):
            native.call("graph_free", self._graph)

    def capture_begin(self, pool: Pool | None = None) -> None:
        """Record what is launched on the current stream, instead of running it."""
        faults.before_capture()
        _check("graph_begin", self._graph, (pool or graph_pool_handle())[1])

    def capture_end(self) -> None:
        """Record no more."""
        _check("graph_end", self._graph)

    def instantiate(self) -> None:
        """Do nothing: a graph needs no instance here."""
        if not self._keeps:
            raise RuntimeError("instantiate() is intended to be called by the user only when keep_graph=true")

    def replay(self) -> None:
        """Do again what was recorded, as one launch."""
        _check("graph_replay", self._graph)

    def reset(self) -> None:
        """Forget what was recorded, and keep its memory no longer."""
        _check("graph_reset", self._graph)

    def pool(self) -> Pool:
        """Return the pool that its memory lies in."""
        return (0, native.call("graph_pool", self._graph))

    def enable_debug_mode(self) -> None:
        """Do nothing: there is nothing to dump."""

    def debug_dump(self, debug_path: str) -> None:
        """Do nothing."""


def graph_pool_handle() -> Pool:
    """Return a new pool."""
    return (0, native.call("graph_pool_new"))


def is_current_stream_capturing() -> bool:
    """Whether what this thread launches is recorded."""
    return bool(native.call("is_recording", native.call("current_device")))


def functions() -> dict[str, Callable[..., Any]]:
    """Return what stands in `torch._C`."""
    return {
        "_XPUGraph": GraphBase,
        "_xpu_graph_pool_handle": graph_pool_handle,
        "_xpu_isCurrentStreamCapturing": is_current_stream_capturing,
    }


def install() -> None:
    """Make `torch.xpu`'s graphs again: their base was taken when torch was imported. Releases before 2.11 have none."""
    if not hasattr(torch.xpu, "graphs"):
        return
    made = importlib.reload(torch.xpu.graphs)
    vars(torch.xpu).update({name: getattr(made, name) for name in made.__all__})
