"""An operator that PyTorch has no XPU kernel of is computed on the host, with one warning that names it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..host_kernels import computed_on_the_host, missing

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Give every operator that has none a kernel for the XPU."""
    with computed_on_the_host(missing(), _warn):
        yield


def _warn(name: str) -> None:
    _LOGGER.warning(
        f"XPU: PyTorch {torch.__version__} has no XPU kernel of {name}, so it is computed on the host: each call waits "
        "for the GPU and copies its tensors there and back."
    )
