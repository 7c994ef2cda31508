"""The seams of a run within Ultralytics' own methods, by which policies are asked.

A user's trainer may extend these methods in front of the mixin or behind it: what happens within them is seen by both,
as if Ultralytics did it. So they are patched, for one trainer, rather than overridden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .batches import AHEAD
from .patches import Patch, is_upstream, patch

if TYPE_CHECKING:
    from .run import Run

__all__ = ["seams"]

_LOSS = "the loss of a batch"


def seams(trainer: Any) -> list[Patch]:
    """Return the patches of Ultralytics' own methods that a trainer inherits, unless users have replaced them.

    Args:
        trainer: A trainer of ours, whose run is decided.
    """
    found = [
        patch("ultralytics.nn.tasks:BaseModel.forward", why="a policy that fails within the loss would end the run")(
            _forward(trainer.xpu)
        )
    ]
    for why, function in (
        ("batches would be copied one tensor after the other, in their steps", _preprocess_batch(trainer)),
        ("optimizers would not be fused", _build_optimizer(trainer)),
    ):
        method = function.__name__
        for upstream in type(trainer).__mro__:
            if upstream.__module__.partition(".")[0] == "ultralytics" and method in vars(upstream):
                if not is_upstream(vars(upstream)[method]):
                    break  # users' code stands in its place, which sees what it would see
                found.append(patch(f"{upstream.__module__}:{upstream.__qualname__}.{method}", why=why)(function))
                break
    return found


def _preprocess_batch(trainer: Any) -> Callable[..., Any]:
    def preprocess_batch(original: Callable[..., Any], self: Any, batch: Any) -> Any:
        """Move a batch to the device as the policies want it, in the caller's own dict, then let Ultralytics go on."""
        if self is trainer and isinstance(batch, dict):
            _move(trainer, batch)
            trainer.xpu.hooks.xpu_arrange_batch(trainer=trainer, batch=batch)
        return original(self, batch)

    return preprocess_batch


def _move(trainer: Any, batch: dict[str, Any]) -> None:
    stash = trainer.xpu.stash
    moved = stash[AHEAD].arrive(batch) if AHEAD in stash else None
    if moved is None:
        moved = trainer.xpu.hooks.xpu_move_batch(trainer=trainer, batch=batch)
    if moved is None or moved is batch:
        return
    for key in batch.keys() - moved.keys():
        del batch[key]
    batch.update(moved)


def _build_optimizer(trainer: Any) -> Callable[..., Any]:
    def build_optimizer(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        """Build an optimizer as the policies want it."""
        optimizer = original(self, *args, **kwargs)
        if self is not trainer:
            return optimizer
        prepared = trainer.xpu.hooks.xpu_prepare_optimizer(trainer=trainer, optimizer=optimizer)
        return optimizer if prepared is None else prepared

    return build_optimizer


def _forward(run: Run) -> Callable[..., Any]:
    def forward(original: Callable[..., Any], self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute a batch's loss; the first one's once more where a policy that took part in it failed."""
        recovery = run.recovery
        if not isinstance(x, dict) or not torch.is_grad_enabled() or recovery.trusts(_LOSS):
            return original(self, x, *args, **kwargs)
        loss = recovery.repeating(lambda: original(self, x, *args, **kwargs))
        recovery.trust(_LOSS)
        return loss

    return forward
