"""Several XPUs share a batch: each trains on an equal part of it, a whole number of images."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import OptionValueError
from ..hookspecs import hookimpl
from ..run import Run

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")


@hookimpl
def xpu_configure(trainer: Any) -> None:
    """See that there is a part for each XPU, before a process is started for it; say where it isn't what was asked for.

    Raises:
        OptionValueError: The batch has fewer images than there are XPUs, or isn't known yet, as AutoBatch's.
    """
    run: Run = trainer.xpu
    if run.group is not None and trainer.args.rect:  # else Ultralytics does the same, in the process that starts others
        trainer.args.rect = False
        if not run.is_worker:
            _LOGGER.warning(
                "XPU: rect=True needs images in the order of their shapes, which several GPUs don't keep; training "
                "with rect=False."
            )
    batch, world_size = trainer.args.batch, run.world_size
    if world_size < 2 or (batch < 1 and run.group is None):  # the latter Ultralytics refuses, or sets to 16
        return
    if batch < world_size:
        why = "AutoBatch measures one GPU alone" if batch < 1 else "each of them trains on an equal part of the batch"
        raise OptionValueError(
            f"batch={batch} can't be shared by {world_size} GPUs: {why}. Use a multiple of {world_size}, such as "
            f"batch={8 * world_size}.",
            name="batch",
            value=batch,
        )
    if batch % world_size and not run.is_worker:
        part = batch // world_size
        _LOGGER.warning(
            f"XPU: batch={batch} isn't a multiple of {world_size} GPUs: each trains on {part}, so that a step has "
            f"{part * world_size} images."
        )
