"""SYCL's cache of kernels between processes: kept where that is safe.

`SYCL_CACHE_PERSISTENT=1` spares a process the compilation of kernels that another one had before. With SYCL runtimes
from 2025.3 on it was seen to end processes with a segmentation fault, in reading (llama.cpp#22053) and in writing
(intel/llvm#22853); one place is `torch.topk` of PyTorch 2.13 (sglang#34567), by which targets are assigned in every
step. There it is left as it is: off, unless the user has it on.
"""

from __future__ import annotations

import os

import torch

__all__ = ["VARIABLE", "keep", "may_crash", "runtime"]

VARIABLE = "SYCL_CACHE_PERSISTENT"
_FIRST_THAT_CRASHES = "20250300"  # no end to it is known


def runtime() -> str:
    """Return the version of PyTorch's SYCL runtime, such as "20250001"; "" where it doesn't tell, before 2.7."""
    return getattr(torch.version, "xpu", None) or ""


def may_crash() -> bool:
    """Whether this PyTorch's SYCL runtime is one of those that crash."""
    return runtime() >= _FIRST_THAT_CRASHES


def keep() -> None:
    """Switch the cache on where the user says nothing and it is safe; SYCL reads the variable when it is first used."""
    if torch.xpu._is_compiled() and not may_crash():
        os.environ.setdefault(VARIABLE, "1")
