"""`compile=True` is tried out on a tiny function before the run begins; where that fails, the run goes on without."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import compiling
from ..hookspecs import hookimpl
from ..run import Run

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Switch `compile` off where it can't work: loaders, loss and DDP go by the argument, too, not by the model alone.

    In a DDP run the process that starts the others decides for all of them, for they must agree.
    """
    run: Run = trainer.xpu
    if getattr(trainer.args, "compile", False) and not run.is_worker:  # unknown before 8.3.200 or so
        for index in run.indices:
            if found := compiling.obstacle(index):
                _LOGGER.warning(
                    f"XPU: the run goes on without compile={trainer.args.compile!r}, for torch.compile doesn't work on "
                    f"xpu:{index}: {found}"
                )
                trainer.args.compile = False
                break
    yield
