"""The demo's data set: images of handwritten digits, with labels as Ultralytics reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..synthetic import row, write_description, write_image, write_labels
from .scenes import Digits, Scene, make_scenes

VAL_FRACTION = 0.2
"""Fraction of the handwriting samples, and of the images, that is held out."""

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Words, because Ultralytics' plots show a class next to its confidence: "nine 0.8"."""


@dataclass(frozen=True)
class DataSet:
    """A data set on disk.

    Attributes:
        root: Its directory.
        description: The `data.yaml` that Ultralytics takes.
        images: Number of images in each split.
        digits: Number of digits in each split.
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
    """Divide the handwriting samples between the splits, without overlap."""
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
        for index, scene in enumerate(make_scenes(digits, counts[split], size, (seed, number))):
            write_image(root / "images" / split / f"{index:05d}.png", scene.image)
            write_labels(root / "labels" / split / f"{index:05d}.txt", labels(scene))
            drawn[split] += len(scene.classes)
            on_image()
    return DataSet(root, write_description(root, NAMES), counts, drawn)


def labels(scene: Scene) -> list[str]:
    """Return a label for each digit: its class, and the centre, width and height of its box as fractions."""
    boxes = np.array(scene.boxes, float).reshape(-1, 4) / len(scene.image)
    low, high = boxes[:, :2], boxes[:, 2:]
    return [row(c, box) for c, box in zip(scene.classes, np.hstack([(low + high) / 2, high - low]), strict=True)]
