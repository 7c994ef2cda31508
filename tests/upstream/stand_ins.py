"""Write what Ultralytics' tests would download: weights and videos. The Ultralytics under test builds them itself.

Run by `python -m tests.upstream` in the directory of a version's source. The models are random: normalised on two
photographs, and with a head that finds objects in them, because many tests ask for detections.
"""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet18_Weights
from ultralytics import RTDETR, YOLO
from ultralytics.cfg import TASK2MODEL
from ultralytics.data.augment import LetterBox
from ultralytics.models.sam.build import build_mobile_sam
from ultralytics.nn.tasks import guess_model_task
from ultralytics.utils import ASSETS, DEFAULT_CFG_DICT, __version__

PHOTOGRAPHS = ("bus.jpg", "zidane.jpg")  # in Ultralytics' package
OBJECTS = 3
RARE = 0.995
"""This share of the anchors is less sure than 1/2 of each of the first classes, at 160 pixels."""

REACH = 4.0
"""How far a YOLO26's boxes reach on each side of their anchors, in strides."""

MODELS = {
    "8.3.0": ["yolo11n", "yolo11n-seg", "yolo11n-cls", "yolo11n-pose", "yolo11n-obb"],
    "8.4.190": ["yolo11n", "yolo11n-grayscale", "yolo26s", "yolo26s-seg", "yolo26s-pose", "yolo26s-obb"],
}
OPEN_VOCABULARY = {"8.3.0": ["yolov8s-world", "yolov8s-worldv2"], "8.4.190": ["yoloe-26n-seg"]}
VOCABULARY = ["person", "bus", "tree"]
VIDEOS = (
    "solutions_ci_demo.mp4",
    "decelera_landscape_min.mov",
    "solution_ci_pose_demo.mp4",
    "solution_ci_parking_demo.mp4",
    "solution_vertical_demo.mp4",
    "decelera_portrait_min.mov",
)


def photographs(side: int, channels: int) -> torch.Tensor:
    """Return the photographs as a batch of square images."""
    fit = LetterBox((side, side))
    images = [fit(image=cv2.imread(str(ASSETS / name))) for name in PHOTOGRAPHS]
    batch = torch.from_numpy(np.stack(images)[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    return batch if channels == 3 else batch.mean(1, keepdim=True)


@torch.no_grad()
def normalise(model: nn.Module, channels: int) -> None:
    """Set the statistics of batch normalisation by the photographs; untrained ones let every activation vanish."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = layers[0].momentum
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean of all batches
    model.train()
    for side in (64, 160, 320):
        model(photographs(side, channels))
    for layer in layers:
        layer.momentum = momentum
    model.eval()


@torch.no_grad()
def find_objects(model: nn.Module, channels: int) -> None:
    """Scale the scores of a head so that a few anchors of the photographs are objects of the first classes."""
    head = model.model[-1]
    for name in ("cv3", "one2one_cv3"):
        for branch in getattr(head, name, ()):
            last = branch[-1]
            scores = scores_of(model, last, photographs(160, channels))
            scale = 1 / scores.std(1, keepdim=True).clamp(min=1e-3)
            top = (scores * scale).quantile(RARE, dim=1)
            last.weight.mul_(scale[..., None, None])
            last.bias.copy_(last.bias * scale[:, 0] - top - 20)
            last.bias[:OBJECTS] += 20
    for name in ("cv4", "one2one_cv4", "cv4_kpts", "one2one_cv4_kpts"):  # near the anchors, small angles, faint masks
        for branch in getattr(head, name, ()):
            last = branch[-1] if isinstance(branch, nn.Sequential) else branch
            if isinstance(last, nn.Conv2d):
                last.weight.mul_(0.01 if "kpts" in name else 0.1)
    for name in ("cv2", "one2one_cv2"):
        for branch in getattr(head, name, ()) if head.reg_max == 1 else ():  # distances, which must be positive
            branch[-1].weight.mul_(0.01)
            branch[-1].bias.fill_(REACH)


def scores_of(model: nn.Module, layer: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return what a layer gives for images: channels by anchors."""
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda module, args, out: seen.append(out))
    model(images)
    hook.remove()
    return seen[0].transpose(0, 1).flatten(1)


def write_model(stem: str, weights: Path) -> None:
    """Write the weights of a model that is described by a YAML file of its name."""
    torch.manual_seed(0)
    channels, classes = (1 if "grayscale" in stem else 3), (1 if "FastSAM" in stem else None)
    model = YOLO(f"{stem.replace('-grayscale', '').replace('FastSAM-s', 'yolov8s-seg')}.yaml").model
    if channels == 1 or classes:
        model = type(model)(deepcopy(model.yaml), ch=channels, nc=classes, verbose=False)
    normalise(model, channels)
    task = guess_model_task(model)
    if task in ("detect", "segment", "pose", "obb"):
        find_objects(model, channels)
    if task == "pose":
        model.kpt_shape = model.model[-1].kpt_shape  # as its trainer does
    save(model, task, weights / f"{stem}.pt")


def write_open_vocabulary(stem: str, weights: Path) -> None:
    """Write a model whose classes are texts, and of YOLOE the variant that needs no text; they find nothing."""
    torch.manual_seed(0)
    model = YOLO(f"{stem}.yaml").model
    save(model, guess_model_task(model), weights / f"{stem}.pt")
    if stem.startswith("yoloe"):
        prompt_free = YOLO(weights / f"{stem}.pt")
        prompt_free.set_vocab(prompt_free.get_vocab(VOCABULARY), VOCABULARY)
        save(prompt_free.model, "segment", weights / f"{stem}-pf.pt")


def save(model: nn.Module, task: str, target: Path) -> None:
    """Write a checkpoint as a finished training leaves it: in half precision, without an optimizer."""
    size = 224 if task == "classify" else 640
    model.args = {**DEFAULT_CFG_DICT, "task": task, "imgsz": size, "data": "coco8.yaml", "model": target.name}
    checkpoint = dict.fromkeys(("ema", "optimizer", "updates", "best_fitness"))
    checkpoint |= {"epoch": -1, "model": deepcopy(model).half(), "train_args": dict(model.args)}
    checkpoint |= {"date": "2026-01-01T00:00:00", "version": __version__, "train_metrics": {}, "train_results": {}}
    torch.save(checkpoint, target)


class TextEncoder(nn.Module):
    """Turns tokens into unit vectors, as MobileCLIP's text encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(49408, 512)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.embedding(tokens).mean(1), dim=-1)


def write_backbone(home: Path) -> None:
    """Write the weights that torchvision would download for `yolo11-cls-resnet18.yaml`."""
    torch.manual_seed(0)
    checkpoints = home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), checkpoints / Path(ResNet18_Weights.DEFAULT.url).name)


def write_video(target: Path, frames: int = 3) -> None:
    """Write a short video: a view that moves over a photograph."""
    image = cv2.resize(cv2.imread(str(ASSETS / PHOTOGRAPHS[0])), (720, 960))
    video = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"mp4v"), 10, (640, 640))
    for i in range(frames):
        video.write(image[8 * i : 8 * i + 640, 4 * i : 4 * i + 640])
    video.release()


def write_solution_assets(assets: Path, detector: Path) -> None:
    """Write what `tests/test_solutions.py` takes."""
    for name in VIDEOS:
        write_video(assets / name)
    shutil.copy(ASSETS / PHOTOGRAPHS[0], assets / "boats.jpg")
    shutil.copy(detector, assets / "solutions_ci_parking_model.pt")
    (assets / "solution_ci_parking_areas.json").write_text('[{"points": [[50, 50], [300, 50], [300, 300], [50, 300]]}]')


def main() -> None:
    weights = Path("weights")
    assets, spaces = weights / "solution_assets", weights / "path with spaces"
    for directory in (assets, spaces):
        directory.mkdir(parents=True, exist_ok=True)
    default = [Path(name).stem for name in TASK2MODEL.values()]
    for stem in {*default, *MODELS[__version__], "FastSAM-s"} - {*OPEN_VOCABULARY[__version__]}:
        write_model(stem, weights)
    save(RTDETR("rtdetr-l.yaml").model, "detect", weights / "rtdetr-l.pt")
    torch.manual_seed(0)
    torch.save(build_mobile_sam().state_dict(), weights / "mobile_sam.pt")
    torch.jit.script(TextEncoder().eval()).save(str(weights / "mobileclip2_b.ts"))
    for stem in OPEN_VOCABULARY[__version__]:
        write_open_vocabulary(stem, weights)
    for stem in {*default, "yolo11n"}:
        shutil.copy(weights / f"{stem}.pt", spaces)
    write_backbone(Path("torch_home"))
    write_solution_assets(assets, weights / TASK2MODEL["detect"])
    shutil.copy(assets / VIDEOS[-1], ".")  # where 8.3.0 looks before it downloads a URL


if __name__ == "__main__":
    main()
