"""Write small data sets in place of those that Ultralytics' tests would download."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from yolo_xpu_trainer.commands.synthetic import TASKS, write

SETS = {
    "coco8": "detect",
    "coco8-grayscale": "detect",
    "coco8-multispectral": "detect",
    "coco12-formats": "detect",
    "coco8-seg": "segment",
    "coco128-seg": "segment",
    "coco8-pose": "pose",
    "dota8": "obb",
    "cityscapes8": "semantic",
    "depth8": "depth",
}
SYNSETS = ["n01440764", "n01443537", "n01484850"]  # names of ImageNet's, which 8.3.0 translates
FORMATS = (".bmp", ".jpg", ".png", ".tif", ".webp", ".jp2")


def write_data_sets(source: Path, target: Path) -> None:
    """Write every set that the version in `source` describes.

    Args:
        source: A version's source tree.
        target: The directory where its settings say that data sets are.
    """
    for name, task in SETS.items():
        file = source / "ultralytics" / "cfg" / "datasets" / f"{name}.yaml"
        if file.exists():
            _write(task, yaml.safe_load(file.read_text(encoding="utf-8")), target)
    write("classify", target / "imagenet10", images=6, names=SYNSETS)


def _write(task: str, description: dict[str, Any], target: Path) -> None:
    assert task in TASKS
    root = target / Path(description["path"]).name
    names = [str(name) for name in description["names"].values()]
    keypoints = tuple(description.get("kpt_shape", (4, 3)))
    write(task, root, images=4, size=96, names=names, keypoints=keypoints, suffix=".jpg")
    (root / "data.yaml").unlink()
    splits = Path(description["train"]).name
    if splits != "train":  # one set of images for both
        for directory in (root / "images", root / "labels"):
            (directory / "train").rename(directory / splits)
    if "label_mapping" in description:
        _raw_classes(root, description["label_mapping"])
    if description.get("channels") == 10:
        for image in (root / "images").rglob("*.jpg"):
            grey = cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)
            cv2.imwritemulti(str(image.with_suffix(".tiff")), [np.roll(grey, i) for i in range(10)])
            image.unlink()
    if "formats" in root.name:
        _other_formats(root)


def _raw_classes(root: Path, mapping: dict[Any, Any]) -> None:
    """Turn the classes of masks into the ones that the description maps to them."""
    table = np.zeros(256, np.uint8)
    for raw, number in mapping.items():
        if isinstance(number, int) and raw >= 0:
            table[number] = raw
    for mask in (root / "masks").rglob("*.png"):
        cv2.imwrite(str(mask), table[cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)])


def _other_formats(root: Path) -> None:
    """Have six images in six formats in each split."""
    for split in ("train", "val"):
        images, labels = root / "images" / split, root / "labels" / split
        for number, suffix in enumerate(FORMATS):
            image = cv2.imread(str(images / f"{number % 4}.jpg"))
            cv2.imwrite(str(images / f"format{number}{suffix}"), image)
            shutil.copy(labels / f"{number % 4}.txt", labels / f"format{number}.txt")
        for number in range(4):
            (images / f"{number}.jpg").unlink()
            (labels / f"{number}.txt").unlink()
