"""With `compile`, some steps are timed, compiled and eager in turn; what is faster goes on, and both times are said.

What was compiled for a batch's shape isn't compiled again for another one: an epoch's last batch, or a validation on
the trained model, is computed eagerly.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from typing import Any

import torch

from ...device_errors import is_lost, is_out_of_memory
from ...options import Option
from ...run import EAGER_STEP, Run, StashKey
from .obstacles import shortened, text_of

__all__ = ["COMPARE_COMPILED", "compare", "release"]

_LOGGER = logging.getLogger("ultralytics")

COMPARE_COMPILED = Option(
    "compare_compiled",
    True,
    "with `compile` on one GPU, 16 steps are timed, compiled and eager in turn, and what is faster goes on; with "
    "`False` every step is compiled",
)
_WARM_UP = (False, True, True)  # whether a step is compiled: the first one of each kind makes kernels
# The sequence of Thue and Morse: what happens in every second, fourth or eighth step, as an optimizer's, falls on both
# kinds alike.
_TURNS = tuple(bin(i).count("1") % 2 == 0 for i in range(16))


def compare(trainer: Any) -> None:
    """Let the steps of a trainer whose model was compiled be compared; to be called once it is set up."""
    run: Run = trainer.xpu
    if run.options[COMPARE_COMPILED] and (reason := _not_compared(trainer)):
        if os.environ.get("RANK", "-1") in {"-1", "0"}:
            _LOGGER.info(f"XPU: compiled steps aren't compared with eager ones, because of {reason}.")
        return
    compiled = trainer.model
    if "_orig_mod" not in getattr(compiled, "_modules", ()) or "forward" not in vars(compiled):  # Ultralytics couldn't
        run.stash[EAGER_STEP] = True
        return
    if not run.options[COMPARE_COMPILED]:
        return
    if _STEPS not in run.stash:
        trainer.callbacks["on_train_batch_start"].insert(0, run.recovery.guarded(_begin))
        trainer.callbacks["on_train_batch_end"].insert(0, run.recovery.guarded(_end))
    run.stash[_STEPS] = _Steps(trainer, compiled)
    vars(compiled)["forward"] = run.recovery.guarded(run.stash[_STEPS].forward, instead=vars(compiled)["forward"])


def _not_compared(trainer: Any) -> str:
    """Return why steps aren't compared, "" where they are.

    On several GPUs Ultralytics tells DDP that every step computes with the same weights, which holds for compiled steps
    alone: those give a gradient of zero to what a loss without objects doesn't use.
    """
    if trainer.xpu.world_size > 1:
        return "several GPUs"
    names = (name for name in ("multi_scale", "rect") if getattr(trainer.args, name, False))
    return next((f"{name}={getattr(trainer.args, name)!r}" for name in names), "")


def release(trainer: Any) -> None:
    """Let a compiled model's forward be as it was; to be called as a run ends."""
    if (steps := trainer.xpu.stash.get(_STEPS, None)) is not None:
        vars(steps.model)["forward"] = steps.compiled


def _begin(trainer: Any) -> None:
    trainer.xpu.stash[_STEPS].begin(trainer)


def _end(trainer: Any) -> None:
    trainer.xpu.stash[_STEPS].end()


class _Steps:
    """The steps of a run whose model is compiled.

    Args:
        trainer: The trainer.
        compiled: What `torch.compile` made of its model.

    Attributes:
        model: That module.
        compiled: Its compiled forward.
    """

    def __init__(self, trainer: Any, compiled: torch.nn.Module) -> None:
        self.model, self.compiled = compiled, vars(compiled)["forward"]
        self._run: Run = trainer.xpu
        self._eager: Any = compiled._orig_mod
        self._batch = trainer.batch_size
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._plan = [*_WARM_UP, *_TURNS]
        self._odd_steps = 0
        self._seconds: dict[bool, list[float]] = {False: [], True: []}
        self._first = 0.0
        self._shape: Any = None
        self._choice: bool | None = None  # whether compiled steps go on, once that is decided
        self._works = self._is_within = self._was_odd = False
        self._began = 0.0

    @property
    def _is_compiled(self) -> bool:
        """Whether this step is a compiled one, if its batch has the shape."""
        return self._plan[0] if self._choice is None else self._choice

    def begin(self, trainer: Any) -> None:
        """Begin a step: decide how it is computed."""
        if trainer.batch_size != self._batch:  # memory ran out
            self._batch = trainer.batch_size
            if self._choice is not False:
                self._begin_anew()
        self._run.stash[EAGER_STEP] = not self._is_compiled
        self._is_within, self._was_odd = True, False
        if self._choice is None:
            self._began = self._now()

    def end(self) -> None:
        """End a step: take its time, and decide how the run goes on when all were taken."""
        was_within, self._is_within = self._is_within, False
        if self._choice is not None or not was_within:
            return
        if self._was_odd:
            self._odd_steps += 1
            if self._odd_steps > len(_TURNS):
                self._choice = True
                shape = "x".join(map(str, self._shape[0]))
                _LOGGER.info(
                    f"XPU: images vary in size, so that steps can't be compared. Batches of {shape} are compiled."
                )
            return
        seconds = self._now() - self._began
        is_compiled = self._plan.pop(0)
        if len(self._plan) >= len(_TURNS):
            self._first = max(self._first, seconds) if is_compiled else self._first
            return
        self._seconds[is_compiled].append(seconds)
        if not self._plan:
            self._decide()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the model's forward, as the step is computed."""
        images = args[0] if args else None
        if not isinstance(images, torch.Tensor) or not self._eager.training or not torch.is_grad_enabled():
            return self._eager(*args, **kwargs)
        shape = (images.shape, images.stride(), images.dtype)
        if self._shape is None and self._is_within:
            self._shape = shape
        if shape != self._shape:
            self._was_odd = True
        if self._was_odd or not self._is_compiled:
            return self._eager(*args, **kwargs)
        if self._works:
            return self.compiled(*args, **kwargs)
        try:
            computed = self.compiled(*args, **kwargs)
        except Exception as error:  # of Dynamo, Inductor, Triton, a compiler or the driver
            if is_lost(error) or is_out_of_memory(error):
                raise
            self._fail(error)
            return self._eager(*args, **kwargs)
        self._works = True
        return computed

    def _fail(self, error: Exception) -> None:
        said = shortened(text_of(error))
        _LOGGER.warning(f"XPU: compiling the model failed, and the run goes on without: {said}")
        self._choice = False

    def _now(self) -> float:
        torch.xpu.synchronize(self._run.device.index)
        return time.perf_counter()

    def _decide(self) -> None:
        """Decide for what was faster."""
        eager, compiled = (statistics.median(self._seconds[kind]) for kind in (False, True))
        self._choice = compiled < eager
        _LOGGER.info(_words(eager, compiled, self._first))


_STEPS = StashKey[_Steps]()


def _words(eager: float, compiled: float, first: float) -> str:
    times = f"a step takes {compiled * 1e3:.1f} ms compiled and {eager * 1e3:.1f} ms eager"
    how = f"medians of {len(_TURNS) // 2} each, in turn; the first compiled one took {first:.0f} s"
    goes_on = "Compiled steps go on." if compiled < eager else "Eager steps go on; compile=False saves the compiling."
    return f"XPU: {times} ({how}). {goes_on}"
