"""Metrics reckoned on the host: what plain Ultralytics finds, for a few waits a batch."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

import pytest
import torch
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.metrics import DetMetrics

from yolo_xpu_trainer.errors import OptionValueError

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


def validate(task: str, data: str, own: Any = None, **arguments: Any) -> Any:
    from ultralytics import YOLO
    from ultralytics.models import yolo

    name = {"detect": "Detection", "segment": "Segmentation", "obb": "OBB"}.get(task, "Pose")
    validator = own or getattr(getattr(yolo, task), f"{name}Validator")
    settings = {"data": data, "imgsz": 64, "batch": 4, "device": "xpu:0", "plots": True, "workers": 0}
    return YOLO(f"{MODELS[task]}.yaml").val(validator=nearly_right(validator), **{**settings, **arguments})


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize(
    "files", [{}, pytest.param({"save_txt": True, "save_json": True}, marks=pytest.mark.slow)], ids=["", "files"]
)
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


# Users' validators


class Processes(DetectionValidator):
    """Weighs boxes by a tensor on the device, and keeps what it found there."""

    found: Any = 0

    def init_metrics(self, model: Any) -> None:
        super().init_metrics(model)
        self.shift = torch.zeros(4, device=self.device)

    def _process_batch(self, preds: Any, batch: Any) -> Any:
        self.found = self.found + (preds["bboxes"] + self.shift).sum()
        return super()._process_batch({**preds, "bboxes": preds["bboxes"] + self.shift}, batch)


class Matches(DetectionValidator):
    """Matches by classes on the device."""

    def match_predictions(self, pred_classes: Any, true_classes: Any, iou: Any, *args: Any) -> Any:
        kept = torch.arange(self.nc, device=self.device)
        return super().match_predictions(kept[pred_classes.long()], true_classes, iou, *args)


class Prepares(DetectionValidator):
    """Reads a key of its own that is on the device."""

    def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess(batch)
        batch["weight"] = torch.ones(len(batch["cls"]), device=self.device)
        return batch

    def _prepare_batch(self, i: int, batch: Any) -> Any:
        prepared = super()._prepare_batch(i, batch)
        prepared["weight"] = batch["weight"][batch["batch_idx"] == i] * prepared["cls"]
        return prepared


class OwnMetrics(DetMetrics):
    """Adds a number on the device to its own."""

    def update_stats(self, stat: dict[str, Any]) -> None:
        super().update_stats(stat)


class Measures(DetectionValidator):
    """Has metrics of its own."""

    def init_metrics(self, model: Any) -> None:
        self.metrics = OwnMetrics()
        super().init_metrics(model)


class Updates(DetectionValidator):
    """Looks at predictions, to which it added one of its own, beside the metrics."""

    devices: list[str]

    def postprocess(self, preds: Any) -> Any:
        return [{**pred, "mine": pred["bboxes"].new_ones(2)} for pred in super().postprocess(preds)]

    def update_metrics(self, preds: Any, batch: Any) -> None:
        super().update_metrics(preds, batch)
        assert {str(value.device) for pred in preds for value in pred.values()} == {"xpu:0"}
        assert str(batch["cls"].device) == str(self.device) == "xpu:0"


class Yields(DetectionValidator):
    """Gives metrics one prediction after the other, and a batch that is no plain dict."""

    def update_metrics(self, preds: Any, batch: Any) -> None:
        super().update_metrics((pred for pred in preds), OrderedDict(batch))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("own", "named"),
    [
        (Processes, "_process_batch"),
        (Matches, "match_predictions"),
        (Prepares, "_prepare_batch"),
        (Measures, "metrics"),
        (Updates, ""),
        (Yields, ""),
    ],
)
def test_users_validators_find_what_they_find_in_plain_ultralytics(
    xpu: Any, data: TrainingData, log: list[logging.LogRecord], own: Any, named: str
) -> None:
    settings = {"plots": False, "own": own}
    with plain_ultralytics():
        theirs = validate("detect", data("detect"), **settings)
    ours = validate("detect", data("detect"), **settings)
    assert ours.results_dict == theirs.results_dict
    told = [record.getMessage() for record in log if "xpu_host_metrics" in record.getMessage()]
    assert len(told) == bool(named)
    assert all(f" has {named} of its own" in line for line in told)


def test_classes_are_drawn_as_one_where_they_count_as_one(
    xpu: Any, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []

    def draw(self: Any, batch: Any, preds: Any, ni: int, max_det: Any = None) -> None:
        drawn.extend(pred["cls"].cpu() for pred in preds)

    monkeypatch.setattr(DetectionValidator, "plot_predictions", draw)
    validate("detect", data("detect"), single_cls=True)
    assert drawn
    assert not any(classes.any() for classes in drawn)


def test_the_option_is_read_where_the_device_is_an_xpu(
    xpu: Any, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_XPU_HOST_METRICS", "lots")
    validate("detect", data("detect"), device="cpu")
    with pytest.raises(OptionValueError):
        validate("detect", data("detect"))
