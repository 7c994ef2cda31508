"""A reference to measure beside bf16 autocast: trainings whose weights themselves are bf16, as getitune trains on XPUs.

The model with its buffers, the images, gradients, averages and the optimizer's moments are bf16, and autocast is off,
so that no weight is cast for a step. No fp32 copy of the weights exists: an update that is smaller than bf16's
rounding of a weight (one part in 256) is lost. The loop is Ultralytics', not getitune's, and nothing is said of the
model that comes out.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["has_bf16_weights", "with_bf16_weights"]


def with_bf16_weights(trainer_class: type[Any]) -> type[Any]:
    """Return a trainer like another one, whose model and images are bf16."""

    class PureBF16(trainer_class):  # type: ignore[misc]
        def setup_model(self) -> Any:
            checkpoint = super().setup_model()
            self.model.to(torch.bfloat16)
            return checkpoint

        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch = super().preprocess_batch(batch)
            batch["img"] = batch["img"].to(torch.bfloat16)
            return batch

    return PureBF16


def has_bf16_weights(trainer: Any) -> bool:
    """Whether all weights and averages of a running training are bf16, and autocast is off."""
    tensors = [*trainer.model.parameters(), *trainer.ema.ema.parameters()]
    return not trainer.amp and all(tensor.dtype is torch.bfloat16 for tensor in tensors)
