"""Deterministic algorithms, Ultralytics' default, without filling new memory: a kernel for each tensor that is made.

PyTorch fills with NaN what `torch.empty` gives, so that a program that reads it is found. On XPUs it does so as well
(torch-xpu-ops, TensorFactories.cpp), and kernels' own scratch memory is made that way. Ultralytics leaves it out since
8.4.190: on a B200 a YOLO26x made some 2,600 fills a step, and was 12 % faster without, bit for bit the same
(ultralytics#26180).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.deterministic

from ..hookspecs import hookimpl

__all__: list[str] = []


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Fill nothing for the length of a run, and put back what was, unless Ultralytics has changed it meanwhile."""
    switches: Any = torch.utils.deterministic
    before = switches.fill_uninitialized_memory
    switches.fill_uninitialized_memory = False
    try:
        yield
    finally:
        if not switches.fill_uninitialized_memory:
            switches.fill_uninitialized_memory = before
