"""Tiny data sets for every task, drawn by `yolo_xpu_trainer.commands.synthetic`, and handwritten digits."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from yolo_xpu_trainer.commands.synthetic import NAMES, TASKS, row, write, write_description, write_image, write_labels

WRITERS: dict[str, Callable[..., Path]] = {task: functools.partial(write, task) for task in TASKS}
"""For each task what writes its data set into a directory, and returns what Ultralytics takes as `data`."""
WRITERS["classify"] = functools.partial(write, "classify", images=9)  # three of each class

segment = functools.partial(write, "segment", classes=len(NAMES))  # of however many names


def grounding(description: Path, target: Path) -> dict[str, str]:
    """Describe the training images of `segment`'s data set by captions, as the open-vocabulary trainers take them.

    Args:
        description: The data set's `data.yaml`.
        target: The JSON file to write.

    Returns:
        An entry for `grounding_data`.
    """
    images, annotations = [], []
    for number, file in enumerate(sorted((description.parent / "images" / "train").glob("*.png"))):
        height, width = cv2.imread(str(file)).shape[:2]
        caption, spans = "", {}
        for name in NAMES:
            spans[name] = [len(caption) + 2, len(caption) + 2 + len(name)]
            caption += f"a {name}, "
        images.append({"id": number, "height": height, "width": width, "file_name": file.name, "caption": caption})
        labels = description.parent / "labels" / "train" / f"{file.stem}.txt"
        for line in labels.read_text().splitlines():
            c, *values = line.split()
            polygon = np.array(values, float).reshape(-1, 2) * (width, height)
            low, high = polygon.min(0), polygon.max(0)
            annotations.append(
                {
                    "image_id": number,
                    "iscrowd": 0,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "segmentation": [polygon.ravel().tolist()],
                    "tokens_positive": [spans[NAMES[int(c)]]],
                }
            )
    target.write_text(json.dumps({"images": images, "annotations": annotations}))
    return {"img_path": str(description.parent / "images" / "train"), "json_file": str(target)}


def digits(root: Path, images: int, size: int = 96, seed: int = 0) -> Path:
    """Write scikit-learn's handwritten digits, enlarged and pasted on textures: something that takes learning."""
    from sklearn.datasets import load_digits

    samples = load_digits()
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        for i in range(images):
            texture = cv2.resize(rng.uniform(20, 120, (size // 8, size // 8, 3)), (size, size))
            image = (texture + rng.normal(0, 8, texture.shape)).clip(0, 255)
            rows = []
            for _ in range(rng.integers(2, 5)):
                k, side = rng.integers(len(samples.images)), int(rng.integers(size // 5, size // 3))
                x, y = rng.integers(0, size - side, 2)
                ink = cv2.resize(samples.images[k] / 16, (side, side)).clip(0, 1)[..., None]
                image[y : y + side, x : x + side] = image[y : y + side, x : x + side] * (1 - ink) + 250 * ink
                rows.append(row(int(samples.target[k]), np.array([x + side / 2, y + side / 2, side, side]) / size))
            write_image(root / "images" / split / f"{i:03d}.png", image.astype(np.uint8))
            write_labels(root / "labels" / split / f"{i:03d}.txt", rows)
    return write_description(root, [str(number) for number in range(10)])
