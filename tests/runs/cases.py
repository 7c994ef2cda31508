"""How a test runs each trainer: its model, and the data that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import datasets


@dataclass(frozen=True)
class Case:
    """How to run one trainer.

    Attributes:
        model: The architecture that it trains.
        data: The task whose data set it trains on; "open" is one of 80 classes, and captions.
        pretrained: Whether it only goes on from a checkpoint.
        text: Whether it needs a text encoder.
    """

    model: str
    data: str
    pretrained: bool = False
    text: bool = False

    @property
    def task(self) -> str:
        """Return the task as Ultralytics names it."""
        if self.data == "open":
            return "segment" if "-seg" in self.model else "detect"
        return self.data


RTDETR, _WORLD, _YOLOE, _YOLOE_SEG = "tiny-rtdetr.yaml", "yolov8n-worldv2.yaml", "yoloe-11n.yaml", "yoloe-11n-seg.yaml"
CASES = {
    "XPUDetectionTrainer": Case("yolo11n.yaml", "detect"),
    "XPUSegmentationTrainer": Case("yolo11n-seg.yaml", "segment"),
    "XPUClassificationTrainer": Case("yolo11n-cls.yaml", "classify"),
    "XPUPoseTrainer": Case("yolo11n-pose.yaml", "pose"),
    "XPUOBBTrainer": Case("yolo11n-obb.yaml", "obb"),
    "XPUSemanticSegmentationTrainer": Case("yolo26n-sem.yaml", "semantic"),
    "XPUDepthTrainer": Case("yolo26n-depth.yaml", "depth"),
    "XPURTDETRTrainer": Case(RTDETR, "detect"),
    "XPUWorldTrainer": Case(_WORLD, "detect", text=True),
    "XPUWorldFromScratchTrainer": Case(_WORLD, "open", text=True),
    "XPUYOLOETrainer": Case(_YOLOE, "detect", text=True),
    "XPUYOLOEPETrainer": Case(_YOLOE, "detect", text=True, pretrained=True),
    "XPUYOLOEFromScratchTrainer": Case(_YOLOE, "open", text=True),
    "XPUYOLOEPEFreeTrainer": Case(_YOLOE, "open", text=True, pretrained=True),
    "XPUYOLOEVPTrainer": Case(_YOLOE, "open", text=True),
    "XPUYOLOESegTrainer": Case(_YOLOE_SEG, "segment", text=True),
    "XPUYOLOEPESegTrainer": Case(_YOLOE_SEG, "segment", text=True, pretrained=True),
    "XPUYOLOESegFromScratchTrainer": Case(_YOLOE_SEG, "open", text=True),
    "XPUYOLOESegVPTrainer": Case(_YOLOE_SEG, "open", text=True),
}

# YOLO26 has heads without NMS and losses of its own.
END_TO_END = {
    "XPUDetectionTrainer": Case("yolo26n.yaml", "detect"),
    "XPUSegmentationTrainer": Case("yolo26n-seg.yaml", "segment"),
    "XPUPoseTrainer": Case("yolo26n-pose.yaml", "pose"),
    "XPUOBBTrainer": Case("yolo26n-obb.yaml", "obb"),
}

# RT-DETR's smallest published architecture takes 300 queries, more than an image of 64 pixels has cells.
TINY_RTDETR = """
nc: 80
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
head:
  - [-1, 1, AIFI, [128, 4]]
  - [[2, 3, 5], 1, RTDETRDecoder, [nc, 64, 30, 4, 4, 2]]
"""


def open_data(root: Path) -> dict[str, Any]:
    """Write a data set of 80 classes, which Ultralytics' open-vocabulary losses count on, and captions to it."""
    names = [*datasets.NAMES, *(f"thing {i}" for i in range(80 - len(datasets.NAMES)))]
    description = datasets.segment(root, names=names)
    captions = datasets.grounding(description, root / "captions.json")
    both = {"yolo_data": [str(description)]}
    return {"train": {**both, "grounding_data": [captions]}, "val": both}
