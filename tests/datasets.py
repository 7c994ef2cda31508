"""Tiny data sets for every task, drawn from a seed: rotated, coloured rectangles on noise, or handwritten digits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

NAMES = ("red block", "green block", "blue block")
_COLOURS = ((40, 40, 220), (40, 200, 60), (220, 80, 40))  # BGR


@dataclass(frozen=True)
class Scene:
    """An image and what is on it.

    Attributes:
        image: uint8 (size, size, 3), BGR.
        classes: Index into `NAMES` of each rectangle.
        corners: Corners of each rectangle in pixels, float (n, 4, 2), clockwise; later ones lie on top.
    """

    image: np.ndarray
    classes: list[int]
    corners: np.ndarray

    @property
    def size(self) -> int:
        """Return the side of the image in pixels."""
        return self.image.shape[0]


def draw(size: int, rng: np.random.Generator) -> Scene:
    """Draw one to three rectangles on noise, each well inside of the image."""
    image = rng.integers(70, 130, (size, size, 3)).astype(np.uint8)
    classes, corners = [], []
    for _ in range(rng.integers(1, 4)):
        half = rng.uniform(0.1, 0.2, 2) * size
        angle = rng.uniform(0, np.pi / 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        box = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ turn.T + rng.uniform(0.3, 0.7, 2) * size
        classes.append(int(rng.integers(len(NAMES))))
        corners.append(box)
        cv2.fillPoly(image, [box.round().astype(np.int32)], _COLOURS[classes[-1]])
    return Scene(image, classes, np.array(corners))


def _row(number: int, values: np.ndarray) -> str:
    return " ".join([str(number), *(f"{value:.6f}" for value in np.ravel(values))])


def _box(corners: np.ndarray) -> np.ndarray:
    """Return the centre, width and height of the upright box around some corners."""
    low, high = corners.min(0), corners.max(0)
    return np.concatenate([(low + high) / 2, high - low])


def _box_row(number: int, corners: np.ndarray) -> str:
    return _row(number, _box(corners))


def _pose_row(number: int, corners: np.ndarray) -> str:
    return _row(number, np.concatenate([_box(corners), np.column_stack([corners, np.full(4, 2)]).ravel()]))


def _write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def _write_description(root: Path, **more: object) -> Path:
    path = root / "data.yaml"
    content = {"path": str(root), "train": "images/train", "val": "images/val", "names": list(NAMES), **more}
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items()))
    return path


def _scenes(images: int, size: int, seed: int = 0) -> dict[str, list[Scene]]:
    rng = np.random.default_rng(seed)
    return {split: [draw(size, rng) for _ in range(images)] for split in ("train", "val")}


def _labelled(root: Path, images: int, size: int, row: Callable[[int, np.ndarray], str], **more: object) -> Path:
    """Write images with a text file of labels for each."""
    for split, scenes in _scenes(images, size).items():
        for i, scene in enumerate(scenes):
            _write_image(root / "images" / split / f"{i}.png", scene.image)
            labels = root / "labels" / split / f"{i}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            rows = [row(c, corners / size) for c, corners in zip(scene.classes, scene.corners, strict=True)]
            labels.write_text("\n".join(rows))
    return _write_description(root, **more)


def detect(root: Path, images: int = 8, size: int = 64) -> Path:
    """Write upright boxes."""
    return _labelled(root, images, size, _box_row)


def segment(root: Path, images: int = 8, size: int = 64, names: Sequence[str] = NAMES) -> Path:
    """Write polygons."""
    return _labelled(root, images, size, _row, names=[*names])


def obb(root: Path, images: int = 8, size: int = 64) -> Path:
    """Write rotated boxes."""
    return _labelled(root, images, size, _row)


def pose(root: Path, images: int = 8, size: int = 64) -> Path:
    """Write boxes with their rectangle's four corners as key points, all visible."""
    return _labelled(root, images, size, _pose_row, kpt_shape=[4, 3], flip_idx=[1, 0, 3, 2])


def semantic(root: Path, images: int = 8, size: int = 64) -> Path:
    """Write masks: a class for each pixel, 255 where there is none."""
    for split, scenes in _scenes(images, size).items():
        for i, scene in enumerate(scenes):
            mask = np.full((size, size), 255, np.uint8)
            for c, corners in zip(scene.classes, scene.corners, strict=True):
                cv2.fillPoly(mask, [corners.round().astype(np.int32)], c)
            _write_image(root / "images" / split / f"{i}.png", scene.image)
            _write_image(root / "masks" / split / f"{i}.png", mask)
    return _write_description(root, masks_dir="masks")


def depth(root: Path, images: int = 8, size: int = 64) -> Path:
    """Write depth maps in millimetres: a floor that recedes, and rectangles one metre off."""
    floor = np.linspace(4000, 1500, size).astype(np.uint16)[:, None].repeat(size, 1)
    for split, scenes in _scenes(images, size).items():
        for i, scene in enumerate(scenes):
            distance = floor.copy()
            for corners in scene.corners:
                cv2.fillPoly(distance, [corners.round().astype(np.int32)], 1000)
            _write_image(root / "images" / split / f"{i}.png", scene.image)
            _write_image(root / "depth" / split / f"{i}.png", distance)
    return _write_description(root, names=["depth"], nc=1, channels=3, depth_scale=1000)


def classify(root: Path, images: int = 9, size: int = 64) -> Path:
    """Write one directory a class, each image a single colour with noise; return the data set's directory."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(images):
            noise = rng.integers(-30, 30, (size, size, 3))
            image = np.clip(np.array(_COLOURS[i % len(NAMES)]) + noise, 0, 255).astype(np.uint8)
            _write_image(root / split / NAMES[i % len(NAMES)] / f"{i}.png", image)
    return root


WRITERS: dict[str, Callable[..., Path]] = {
    f.__name__: f for f in (detect, segment, classify, pose, obb, semantic, depth)
}
"""For each task what writes its data set into a directory, and returns what Ultralytics takes as `data`."""


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
                rows.append(_row(int(samples.target[k]), np.array([x + side / 2, y + side / 2, side, side]) / size))
            _write_image(root / "images" / split / f"{i:03d}.png", image.astype(np.uint8))
            labels = root / "labels" / split / f"{i:03d}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("\n".join(rows))
    return _write_description(root, names=[str(number) for number in range(10)])
