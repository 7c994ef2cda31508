"""GPUs of different kinds in one run: each step waits for the slowest, which is named."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..devices import info
from ..hookspecs import hookimpl
from ..run import Run

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")
_SIDE, _TIMES = 1024, 10


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Measure each kind, before the run, in its own precision."""
    run: Run = trainer.xpu
    if run.group is not None:
        if len({peer.name for peer in run.group.peers}) > 1:  # of which all ranks know, so that all take part
            seconds = run.group.gather(_seconds(run, run.device.device))
            if run.group.launch.rank == 0:
                _say({str(peer): found for peer, found in zip(run.group.peers, seconds, strict=True)})
    elif not run.is_worker and len({info(index).name for index in run.indices}) > 1:
        _say({str(info(index)): _seconds(run, info(index).device) for index in run.indices})
    yield


def _seconds(run: Run, device: torch.device) -> float:
    """Return how long a matrix product takes on a device."""
    factor = torch.ones(_SIDE, _SIDE, device=device, dtype=run.precision.dtype or torch.float32)
    started = 0.0
    for i in range(2 * _TIMES):  # the first ones build the kernel
        if i == _TIMES:
            torch.xpu.synchronize(device)
            started = time.perf_counter()
        factor @ factor
    torch.xpu.synchronize(device)
    return (time.perf_counter() - started) / _TIMES


def _say(seconds: dict[str, float]) -> None:
    slowest, fastest = max(seconds, key=seconds.__getitem__), min(seconds, key=seconds.__getitem__)
    _LOGGER.warning(
        f"XPU: GPUs of different kinds train together, so each step waits for the slowest: {slowest}, where a matrix "
        f"product took {seconds[slowest] * 1e3:.2g} ms, and {seconds[fastest] * 1e3:.2g} ms on {fastest}."
    )
