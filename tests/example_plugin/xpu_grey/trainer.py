"""The trainer. At the top of a module, where the processes of a training on several GPUs can import it."""

from typing import Any

from yolo_xpu_trainer import XPUDetectionTrainer


class GreyTrainer(XPUDetectionTrainer):
    """Takes the colour out of the batches that it trains on."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Let the others move and normalise a batch, then turn it grey on the GPU."""
        batch = super().preprocess_batch(batch)
        batch["img"] = batch["img"].mean(1, keepdim=True).expand_as(batch["img"])
        return batch
