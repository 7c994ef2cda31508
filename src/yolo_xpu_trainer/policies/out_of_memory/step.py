"""An optimizer's step is made whole or not at all, where memory runs out in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...devices import empty_cache
from ...patches import patch
from ...run import Run, StashKey
from .texts import one_error

__all__ = ["PENDING", "Step", "optimizer_step"]

PENDING = StashKey[str]()
"""The text of an error that the next forward raises: only there, and in backward, Ultralytics halves the batch."""


@patch(
    "ultralytics.engine.trainer:BaseTrainer.optimizer_step",
    why="the optimizer makes its state in its first step, and memory that runs out there ends the run",
)
def optimizer_step(run: Run, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Step; where memory runs out, leave the step out or bring it to its end, and have the batch halved.

    Raises:
        torch.OutOfMemoryError: A part of the update was made, and can't be brought to its end: there is no memory even
            with the cache emptied, or the optimizer isn't fused and works through its weights in many kernels. The run
            has to go on from a checkpoint.
    """
    step = Step(self.optimizer)
    averaged = self.ema.updates if self.ema else 0
    try:
        with step, one_error(run.device.device):
            return original(self, *args, **kwargs)
    except torch.OutOfMemoryError as error:
        failure = error
    if step.is_begun:
        step.finish(run, failure)
    run.stash[PENDING] = str(failure)
    with contextlib.suppress(AssertionError):  # of a scaler that hasn't got as far as the gradients, or is done
        self.scaler.update()
    self.optimizer.zero_grad()
    if step.is_begun and self.ema:
        self.ema.updates = averaged
        with one_error(run.device.device):
            self.ema.update(self.model)
    return None


class _Groups(list[dict[str, Any]]):
    """An optimizer's groups of parameters, which know how far somebody has got who goes through them."""

    reached = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for self.reached, group in enumerate(super().__iter__()):
            yield group
        self.reached = len(self)


class Step:
    """A step of an optimizer, in whose context it is observed.

    Attributes:
        is_begun: Whether a weight may have been updated.
    """

    def __init__(self, optimizer: Any) -> None:
        self.is_begun = False
        self._optimizer = optimizer
        self._had_state = set(map(id, optimizer.state))
        self._held = optimizer.param_groups
        self._groups = _Groups(self._held)
        self._begins: Any = None

    def __enter__(self) -> None:
        self._optimizer.param_groups = self._groups
        self._begins = self._optimizer.register_step_pre_hook(self._begin)

    def _begin(self, *_: Any) -> None:
        self._groups.reached = 0
        self.is_begun = True

    def __exit__(self, *_: object) -> None:
        self._optimizer.param_groups = self._held
        self._begins.remove()
        if self.is_begun and self._groups.reached == 0 and not self._may_be_half_done():
            self._forget(self._held)
            self.is_begun = False

    def finish(self, run: Run, failure: torch.OutOfMemoryError) -> None:
        """Update the weights that the step didn't get to, if it is known which these are."""
        done, rest = self._held[: self._groups.reached], self._held[self._groups.reached :]
        if all(p.grad is None for group in self._held for p in group["params"]):
            return  # memory ran out in averaging the weights
        if self._may_be_half_done():
            raise failure
        self._forget(rest)
        for parameter in (p for group in done for p in group["params"]):
            parameter.grad = None
        empty_cache(run.device.index)
        with one_error(run.device.device):
            self._optimizer.step()

    def _may_be_half_done(self) -> bool:
        """Whether the group at which the step was interrupted may be updated in part.

        A fused optimizer updates it in one kernel. PyTorch's, and our MuSGD, make the state of all its weights before
        they update one; but for SGD's, which is empty until then.
        """
        if self._groups.reached >= len(self._held):
            return False
        group = self._held[self._groups.reached]
        if group.get("fused"):
            return False
        state = self._optimizer.state
        sizes = {len(state[p]) if p in state else 0 for p in group["params"] if p.grad is not None}
        makes_all_first = type(self._optimizer).__module__.partition(".")[0] in ("torch", __name__.partition(".")[0])
        return not makes_all_first or len(sizes) < 2

    def _forget(self, groups: list[dict[str, Any]]) -> None:
        """Take back the states that the step has made for groups, and the step that it has counted.

        A state that is made in part, with a count and no averages, ends the next step with a KeyError.
        """
        state = self._optimizer.state
        for parameter in (p for group in groups for p in group["params"]):
            if parameter in state and id(parameter) not in self._had_state:
                del state[parameter]
        counted = self._counts(groups[:1])
        others = self._counts(self._held[: self._groups.reached]), self._counts(groups[1:])
        before = float(others[0][0]) - 1 if others[0] else float(others[1][0]) if others[1] else None
        if counted and before is not None and float(counted[0]) > before:
            torch._foreach_sub_(counted, 1)

    def _counts(self, groups: list[dict[str, Any]]) -> list[torch.Tensor]:
        """Return the counts of steps that an optimizer keeps of each weight of groups."""
        entries = [self._optimizer.state[p] for g in groups for p in g["params"] if p in self._optimizer.state]
        return [entry["step"] for entry in entries if isinstance(entry.get("step"), torch.Tensor)]
