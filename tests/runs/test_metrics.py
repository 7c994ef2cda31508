"""Metrics reckoned on the host: what plain Ultralytics finds, for a few waits a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..conftest import TrainingData
from ..training import plain_ultralytics

MODELS = {"detect": "yolo11n", "segment": "yolo11n-seg", "pose": "yolo11n-pose", "obb": "yolo11n-obb"}


def nearly_right(validator: type) -> type:
    """Return a validator whose predictions are its labels, moved a little, some with a wrong class."""

    class NearlyRight(validator):  # type: ignore[misc,valid-type]
        def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
            self.labels = super().preprocess(batch)
            return self.labels  # type: ignore[no-any-return]

        def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
            return [self.prediction(i) for i in range(len(self.labels["img"]))]

        def prediction(self, i: int) -> dict[str, torch.Tensor]:
            generator = torch.Generator().manual_seed(self.seen + i)
            labels = self._prepare_batch(i, self.labels)
            boxes = labels["bboxes"].clone()
            boxes[:, :4] += torch.randn(len(boxes), 4, generator=generator).to(boxes) * 2
            wrong = torch.rand(len(boxes), generator=generator).to(boxes) > 0.7
            made = {
                "bboxes": boxes,
                "cls": (labels["cls"] + wrong) % self.nc,
                "conf": torch.rand(len(boxes), generator=generator).sort(descending=True).values.to(boxes),
            }
            if "keypoints" in labels:
                made["keypoints"] = labels["keypoints"] + 0.5
            if "masks" in labels:
                made["masks"] = labels["masks"].roll(1, dims=2).to(torch.uint8)
            return made

    return NearlyRight


def validate(task: str, data: str, **arguments: Any) -> Any:
    from ultralytics import YOLO
    from ultralytics.models import yolo

    name = {"detect": "Detection", "segment": "Segmentation", "obb": "OBB"}.get(task, "Pose")
    validator = getattr(getattr(yolo, task), f"{name}Validator")
    settings = {"data": data, "imgsz": 64, "batch": 4, "device": "xpu:0", "plots": True, "workers": 0}
    return YOLO(f"{MODELS[task]}.yaml").val(validator=nearly_right(validator), **{**settings, **arguments})


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize("files", [{}, {"save_txt": True, "save_json": True}], ids=["", "files"])
def test_metrics_are_those_of_plain_ultralytics(
    xpu: Any, data: TrainingData, task: str, files: dict[str, bool]
) -> None:
    import numpy as np

    import xpu_simulator

    with plain_ultralytics(), xpu_simulator.count() as plain:
        theirs = validate(task, data(task), **files)
    with xpu_simulator.count() as counts:
        ours = validate(task, data(task), **files)
    assert ours.results_dict == theirs.results_dict
    assert ours.results_dict["metrics/mAP50(B)"] > 0.2
    assert np.array_equal(ours.confusion_matrix.matrix, theirs.confusion_matrix.matrix)
    assert ours.confusion_matrix.matrix.sum() > 0
    if not files:
        assert sum(counts.syncs.values()) < 0.8 * sum(plain.syncs.values())
