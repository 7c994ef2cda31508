"""Every trainer trains, validates, plots and saves on an XPU, whether the device knows float64 or not."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLOE

from xpu_simulator import counters, is_active
from yolo_xpu_trainer import trainers

from .. import datasets
from ..conftest import TrainingData


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


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.load:FutureWarning")

_RTDETR, _WORLD, _YOLOE, _YOLOE_SEG = "tiny-rtdetr.yaml", "yolov8n-worldv2.yaml", "yoloe-11n.yaml", "yoloe-11n-seg.yaml"
CASES = {
    "XPUDetectionTrainer": Case("yolo11n.yaml", "detect"),
    "XPUSegmentationTrainer": Case("yolo11n-seg.yaml", "segment"),
    "XPUClassificationTrainer": Case("yolo11n-cls.yaml", "classify"),
    "XPUPoseTrainer": Case("yolo11n-pose.yaml", "pose"),
    "XPUOBBTrainer": Case("yolo11n-obb.yaml", "obb"),
    "XPUSemanticSegmentationTrainer": Case("yolo26n-sem.yaml", "semantic"),
    "XPUDepthTrainer": Case("yolo26n-depth.yaml", "depth"),
    "XPURTDETRTrainer": Case(_RTDETR, "detect"),
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
_TINY_RTDETR = """
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

_HARMLESS = (
    "no model scale passed",  # the tiny RT-DETR has no scales
    "Skipping instance count verification",  # of a data set that isn't one of Ultralytics' own
)


def _tokenize(texts: str | list[str], truncate: bool = True) -> torch.Tensor:
    """Number a text's characters, as CLIP's tokenizer numbers its words."""
    texts = [texts] if isinstance(texts, str) else texts
    return torch.tensor([[*map(ord, text[:77].ljust(77))] for text in texts])


class _Encoder(nn.Module):
    """A text encoder of CLIP's shapes: tokens in, a unit vector of 512 numbers for each text out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 512)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.embedding(tokens).mean(1), dim=-1)


@pytest.fixture
def _text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put stand-ins where Ultralytics finds its text encoders: CLIP's package, and MobileCLIP's TorchScript file.

    Both are downloads of more than 100 MB. Only what is downloaded is replaced: Ultralytics' own code loads and calls
    them, on the run's device.
    """
    torch.manual_seed(0)
    encoder = _Encoder()
    encoder.encode_text = encoder.forward
    clip = ModuleType("clip")
    clip.tokenize = _tokenize
    clip.clip = SimpleNamespace(tokenize=_tokenize)
    clip.load = lambda size, device, download_root: (encoder.to(device), None)
    monkeypatch.setitem(sys.modules, "clip", clip)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and what Ultralytics loads here
        torch.jit.trace(_Encoder(), _tokenize(["two", "texts"])).save("mobileclip_blt.ts")


@pytest.fixture(scope="session")
def _open_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Write a data set of 80 classes, which Ultralytics' open-vocabulary losses count on, and captions to it."""
    root = tmp_path_factory.mktemp("open")
    names = [*datasets.NAMES, *(f"thing {i}" for i in range(80 - len(datasets.NAMES)))]
    description = datasets.segment(root, names=names)
    captions = datasets.grounding(description, root / "captions.json")
    both = {"yolo_data": [str(description)]}
    return {"train": {**both, "grounding_data": [captions]}, "val": both}


@dataclass
class Seen:
    """What callbacks saw of a run.

    Attributes:
        parameters: Types of the devices that held the parameters.
        sums: The sum of all parameters before and after training.
        losses: The loss of each batch.
        validations: For each, whether it was within training, and its device's type.
    """

    parameters: set[str] = field(default_factory=set)
    sums: set[float] = field(default_factory=set)
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[bool, str]] = field(default_factory=list)


def _watch(trainer: Any) -> Seen:
    seen = Seen()

    def total(trainer: Any) -> None:
        seen.sums.add(sum(p.detach().abs().sum().item() for p in trainer.model.parameters()))

    def batch_end(trainer: Any) -> None:
        seen.parameters |= {p.device.type for p in trainer.model.parameters()}
        seen.losses.append(trainer.loss.item())

    trainer.add_callback("on_train_start", total)
    trainer.add_callback("on_train_batch_end", batch_end)
    trainer.add_callback("on_train_epoch_end", total)
    trainer.add_callback("on_val_end", lambda v: seen.validations.append((v.training, v.device.type)))
    return seen


def _check(name: str, case: Case, data: Any, log: list[logging.LogRecord], directory: Path) -> None:
    """Train for an epoch and look at what came out."""
    model = case.model
    if case.pretrained:
        model = f"{case.task}.pt"
        YOLOE(case.model).save(model)
    trainer = getattr(trainers, name)(
        overrides={
            "model": model,
            "task": case.task,
            "data": data,
            "device": "xpu",
            "epochs": 1,
            "imgsz": 64,
            "batch": 4,
            "nbs": 4,  # a step of the optimizer each batch, at its full rate
            "warmup_epochs": 0,
            "workers": 0,
            "project": str(directory),
            "name": "run",
        }
    )
    seen = _watch(trainer)
    trainer.train()

    assert seen.parameters == {"xpu"}
    assert len(seen.sums) == 2
    assert seen.validations == [(True, "xpu"), (False, "xpu")]
    assert seen.losses
    assert all(map(math.isfinite, seen.losses))
    assert trainer.metrics
    assert all(math.isfinite(v) for v in trainer.metrics.values())
    assert trainer.best.stat().st_size
    assert trainer.last.stat().st_size
    assert {"results.png", "train_batch0.jpg", "val_batch0_pred.jpg"} <= {f.name for f in trainer.save_dir.iterdir()}
    warned = [r.getMessage() for r in log if r.levelno >= logging.WARNING]
    assert not [message for message in warned if not any(text in message for text in _HARMLESS)]
    if is_active() and not trainer.xpu.device.has_fp64:
        assert not counters.read().float64_kernels


def _data(case: Case, data: TrainingData, request: pytest.FixtureRequest) -> Any:
    if case.text:
        request.getfixturevalue("_text_encoder")
    if case.model == _RTDETR:
        Path(_RTDETR).write_text(_TINY_RTDETR)
    return request.getfixturevalue("_open_data") if case.data == "open" else data(case.data)


def test_every_trainer_of_this_ultralytics_is_tried_here() -> None:
    assert set(CASES) == set(trainers.TRAINERS)


@pytest.mark.xpu_hardware
@pytest.mark.usefixtures("xpu", "empty_figures")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "profile", [pytest.param(p, marks=pytest.mark.xpu_profile(p)) for p in ("arc-b580", "arc-a770")]
)
def test_a_task_trains_validates_and_saves(
    name: str,
    profile: str,
    data: TrainingData,
    log: list[logging.LogRecord],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    _check(name, CASES[name], _data(CASES[name], data, request), log, tmp_path)


@pytest.mark.xpu_hardware
@pytest.mark.xpu_profile("arc-a770")
@pytest.mark.usefixtures("xpu", "empty_figures")
@pytest.mark.parametrize("name", END_TO_END)
def test_a_head_without_nms_trains_validates_and_saves(
    name: str, data: TrainingData, log: list[logging.LogRecord], tmp_path: Path
) -> None:
    _check(name, END_TO_END[name], data(END_TO_END[name].data), log, tmp_path)


@pytest.mark.xpu_hardware
@pytest.mark.usefixtures("xpu")
def test_plots_are_drawn(data: TrainingData, log: list[logging.LogRecord], tmp_path: Path) -> None:
    _check("XPUDetectionTrainer", CASES["XPUDetectionTrainer"], data("detect"), log, tmp_path)
    sizes = {f.name: f.stat().st_size for f in (tmp_path / "run").glob("*.png")}
    assert {"results.png", "confusion_matrix.png", "BoxPR_curve.png"} <= set(sizes)
    assert min(sizes.values()) > 1000
