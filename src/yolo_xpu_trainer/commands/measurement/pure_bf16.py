"""A reference to measure beside bf16 autocast: trainings whose weights themselves are bf16, as getitune trains on XPUs.

The model with its buffers, the images, gradients and the optimizer's moments are bf16, and autocast is off, so that no
weight is cast for a step; the average of the weights stays fp32. No fp32 copy of the weights themselves exists: an
update that is smaller than bf16's rounding of a weight (one part in 256) is lost. The loop is Ultralytics', not
getitune's, and nothing is said of the model that comes out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["has_bf16_weights", "with_bf16_weights"]


def with_bf16_weights(trainer_class: type[Any]) -> type[Any]:
    """Return a trainer like another one, whose model and images are bf16."""

    class PureBF16(trainer_class):  # type: ignore[misc]
        def _setup_train(self, *args: Any) -> None:  # some releases pass the number of processes
            super()._setup_train(*args)
            self.model.bfloat16()
            self.ema.update = _update_from_bf16(self.ema)

        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch = super().preprocess_batch(batch)
            batch["img"] = batch["img"].bfloat16()
            return batch

    return PureBF16


def _update_from_bf16(average: Any) -> Callable[[Any], None]:
    """Return an average's update, which gets weights in the average's own precision: some releases take no other."""
    update, twin = average.update, copy.deepcopy(average.ema)
    own = twin.state_dict()

    def cast_and_update(model: Any) -> None:
        weights = model.state_dict()
        with torch.no_grad():
            torch._foreach_copy_(list(own.values()), [weights[name] for name in own])
        update(twin)

    return cast_and_update


def has_bf16_weights(trainer: Any) -> bool:
    """Whether all weights of a running training are bf16, and autocast is off."""
    return not trainer.amp and all(weight.dtype is torch.bfloat16 for weight in trainer.model.parameters())
