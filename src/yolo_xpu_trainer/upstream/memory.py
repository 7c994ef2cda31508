"""Rows that show Ultralytics' AutoBatch an XPU's memory, while it measures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from ..run import Run
from . import legacy
from .rows import Row

__all__ = ["Probe", "measuring_rows"]

Probe = tuple[int, Any]  # a batch and the GiB that it took, None where it failed


def measuring_rows(probes: list[Probe], spoken_for: int) -> list[Row]:
    """Return the rows that act while AutoBatch measures.

    Args:
        probes: Where to note what its profiler finds.
        spoken_for: Bytes of the device's memory that training takes beside what is measured.
    """

    def replacement(run: Run, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def profile(inputs: Any, *args: Any, **more: Any) -> Any:
            results = original(inputs, *args, **more)
            probes.extend((x.shape[0], result and result[2]) for x, result in zip(inputs, results, strict=True))
            return results

        return profile

    noting = [
        Row(
            target=f"ultralytics.utils.autobatch:{name}",
            why="what it finds doesn't always decide",
            source="ultralytics/utils/autobatch.py",
            needed=lambda run, original: True,
            replacement=replacement,
            everywhere=False,
            optional=True,
        )
        for name in ("profile_ops", "profile")  # the latter before 8.3.130
    ]
    return [*_rows(spoken_for), *noting]


def _figures(run: Run, spoken_for: int) -> SimpleNamespace:
    """Return a stand-in for `torch.xpu` that tells the memory which this process can have.

    Where Ultralytics doesn't ask for free memory, it takes all of a device's for it: then that is the total.
    """
    device = run.device

    def mem_get_info(_: Any = None) -> tuple[int, int]:
        return max(device.available_memory().size - spoken_for, 0), device.total_memory

    def get_device_properties(_: Any = None) -> SimpleNamespace:
        usable = device.available_memory().size + device.reserved_memory() - spoken_for
        return SimpleNamespace(
            name=device.name, total_memory=device.total_memory if _asks_for_free_memory() else usable
        )

    ours = {"mem_get_info": mem_get_info, "get_device_properties": get_device_properties}
    return SimpleNamespace(**{**vars(torch.xpu), **ours})


def _asks_for_free_memory() -> bool:
    """Whether this Ultralytics asks how much memory is free, as it does since 8.4.190."""
    from ultralytics.utils import autobatch

    return "mem_get_info" in inspect.unwrap(autobatch.autobatch).__code__.co_names


def _rows(spoken_for: int) -> list[Row]:
    return [
        Row(
            target="ultralytics.utils.torch_utils:torch",
            why="before 8.4.111 its profiler asks CUDA how much memory is in use, and finds none",
            source="ultralytics/utils/torch_utils.py, profile_ops",
            needed=lambda run, original: not legacy.knows_accelerators(),
            replacement=lambda run, original: SimpleNamespace(**{**vars(original), "cuda": torch.xpu}),
            everywhere=False,
        ),
        Row(
            target="ultralytics.utils.autobatch:torch",
            why="before 8.4.111 it asks CUDA for the memory of an XPU, and whether cuDNN is free to choose",
            source="ultralytics/utils/autobatch.py",
            needed=lambda run, original: not legacy.knows_accelerators(),
            replacement=lambda run, original: SimpleNamespace(
                **{
                    **vars(original),
                    "cuda": _figures(run, spoken_for),
                    "backends": SimpleNamespace(cudnn=SimpleNamespace(benchmark=False)),
                }
            ),
            everywhere=False,
        ),
        Row(
            target="ultralytics.utils.autobatch:get_torch_device_backend",
            why="it asks for free memory, which not every driver tells, outside of its `try`; before 8.4.190 it counts "
            "on all of the device's memory, whoever uses it; and it leaves nothing to an integrated GPU's host, nor to "
            "the optimizer",
            source="pytorch#159728, vLLM#40295, ultralytics/utils/autobatch.py",
            needed=lambda run, original: True,
            replacement=lambda run, original: lambda device: _figures(run, spoken_for),
            everywhere=False,
            optional=True,
        ),
    ]
