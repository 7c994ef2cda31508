"""The demo's data set on disk, in the form that Ultralytics reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .scenes import Digits, Floats, Image, Integers, Scene, make_scenes

VAL_FRACTION = 0.2
"""Part of the handwriting samples, and of the images, that is held out."""


@dataclass(frozen=True)
class DataSet:
    """A data set on disk.

    Attributes:
        root: Its directory.
        description: The `data.yaml` that Ultralytics takes.
        images: Number of images in each split.
        digits: Number of digits drawn in each split.
    """

    root: Path
    description: Path
    images: dict[str, int]
    digits: dict[str, int]


def load_digits() -> Digits:
    """Return the 1797 digits that come with scikit-learn."""
    from sklearn.datasets import load_digits

    found = load_digits()
    classes = found.target.astype(np.int64)
    return Digits((found.images / 16).astype(np.float32), classes, np.arange(len(classes), dtype=np.int64))


def split_digits(digits: Digits, seed: int) -> dict[str, Digits]:
    """Divide handwriting samples between the splits, so that none is in both."""
    order = np.random.default_rng(seed).permutation(len(digits.samples))
    held_out = round(VAL_FRACTION * len(order))
    return {"train": digits.take(order[held_out:]), "val": digits.take(order[:held_out])}


def write_dataset(root: Path, images: int, size: int, seed: int, on_image: Callable[[], object] = int) -> DataSet:
    """Draw and write a data set.

    Args:
        root: A directory that doesn't exist yet.
        images: Number of images in both splits together.
        size: Side of an image in pixels.
        seed: The same seed writes the same bytes.
        on_image: Called after each image.

    Returns:
        What was written.
    """
    held_out = max(round(VAL_FRACTION * images), 1)
    counts = {"train": images - held_out, "val": held_out}
    drawn = dict.fromkeys(counts, 0)
    for number, (split, digits) in enumerate(split_digits(load_digits(), seed).items()):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index, scene in enumerate(make_scenes(digits, counts[split], size, (seed, number))):
            write_image(root / "images" / split / f"{index:05d}.png", scene.image)
            (root / "labels" / split / f"{index:05d}.txt").write_text(label_text(scene), encoding="utf-8")
            drawn[split] += len(scene.classes)
            on_image()
    return DataSet(root, write_description(root), counts, drawn)


def write_description(root: Path) -> Path:
    """Write `data.yaml` into `root` and return its path."""
    path = root / "data.yaml"
    description = {
        "path": str(root.resolve()),  # absolute: a relative one is looked for in Ultralytics' own data directory
        "train": "images/train",
        "val": "images/val",
        "names": [str(number) for number in range(10)],
    }
    # JSON is YAML too, and leaves no doubt about spaces, backslashes and the names being strings
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in description.items()]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def label_text(scene: Scene) -> str:
    """Return class, centre x, centre y, width and height of each digit, a line each, the last four as fractions."""
    size = scene.image.shape[0]
    lines = []
    for number, (left, top, right, bottom) in zip(scene.classes, scene.boxes, strict=True):
        values = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        lines.append(f"{number} " + " ".join(f"{value / size:.6f}" for value in values))
    return "".join(f"{line}\n" for line in lines)


def read_labels(path: Path) -> tuple[Integers, Floats]:
    """Read what `label_text` wrote.

    Returns:
        Classes, int64 (n,), and boxes: left, top, right, bottom as fractions of the scene's side, float32 (n, 4).
    """
    rows = np.array([line.split() for line in path.read_text(encoding="utf-8").splitlines()], np.float64)
    rows = rows.reshape(-1, 5)
    centres, sides = rows[:, 1:3], rows[:, 3:5]
    return rows[:, 0].astype(np.int64), np.hstack([centres - sides / 2, centres + sides / 2]).astype(np.float32)


def write_image(path: Path, image: Image) -> None:
    """Write a PNG. OpenCV's own `imwrite` knows, on Windows, no path outside the system's code page."""
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def read_image(path: Path) -> Image:
    """Return an image that `write_image` wrote, uint8 (height, width, 3), BGR."""
    image: Image = np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR), np.uint8)
    return image
