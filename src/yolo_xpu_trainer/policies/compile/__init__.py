"""`compile=True`: tried on a tiny function before a run, and kept for those steps that it makes faster.

Where it can't work, the run goes on without, and says why. Where it works, some steps are timed compiled and eager.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...hookspecs import hookimpl
from ...options import Option
from ...patches import patch
from ...run import Run
from .comparing import COMPARE_COMPILED, compare, release
from .obstacles import problem, trial

__all__ = ["PATCHES", "problem", "trial"]

_LOGGER = logging.getLogger("ultralytics")

_WITH_GRAPHS = "reduce-overhead"  # is the default with CUDA graphs, which Inductor skips on any other device


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [COMPARE_COMPILED]


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Switch `compile` off where it can't work: loaders, loss and DDP go by the argument, too, not by the model alone.

    In a run on several GPUs all must agree: the process that starts the others decides, or all of them together.
    """
    run: Run = trainer.xpu
    if getattr(trainer.args, "compile", False) and (run.group or not run.is_worker):  # unknown before 8.3.200 or so
        found = next(((index, seen) for index in run.indices if (seen := problem(index))), None)
        if run.group is not None:  # each process looked at its own
            found = next(filter(None, run.group.gather(found)), None)
        if found is not None:
            if not run.is_worker:
                _LOGGER.warning(
                    f"XPU: compile={trainer.args.compile!r} is ignored, because torch.compile doesn't work on "
                    f"xpu:{found[0]}: {found[1]}"
                )
            trainer.args.compile = False
    try:
        yield
    finally:
        release(trainer)


@patch(
    "ultralytics.utils.torch_utils:attempt_compile",
    why="torch.compile would fail in the midst of a run on an XPU, at the first forward pass",
    source="ultralytics/utils/torch_utils.py, attempt_compile: it asks for Triton on CUDA devices only",
    optional=True,  # before 8.3.200 or so Ultralytics doesn't compile
)
def attempt_compile(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Compile a model, or say why it can't be on this XPU and return it as it is."""
    given = inspect.signature(original).bind(*args, **kwargs)
    given.apply_defaults()
    device = torch.device(given.arguments["device"])
    if device.type != "xpu" or not given.arguments["mode"]:
        return original(*args, **kwargs)
    index = torch.xpu.current_device() if device.index is None else device.index
    if (found := problem(index)) is None:
        if given.arguments["mode"] == _WITH_GRAPHS:
            _say_that_graphs_are_cudas()
            given.arguments["mode"] = "default"
        return original(*given.args, **given.kwargs)
    _LOGGER.warning(f"XPU: the model is not compiled, because torch.compile doesn't work here: {found}")
    return given.arguments["model"]


PATCHES = [attempt_compile]


@functools.cache
def _say_that_graphs_are_cudas() -> None:
    _LOGGER.info(
        f"XPU: compile={_WITH_GRAPHS!r} means 'default' here: PyTorch records graphs on CUDA devices only "
        "(torch/_inductor/cudagraph_utils.py)."
    )


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Let a compiled model's forward be compiled for batches of one shape, and only where that is faster."""
    if getattr(trainer.args, "compile", False):
        compare(trainer)
