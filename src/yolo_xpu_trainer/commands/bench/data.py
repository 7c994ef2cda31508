"""A data set for any task, drawn from a seed: rectangles on smooth noise, as many a picture as COCO has objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .models import Subject

__all__ = ["TASKS", "images", "write"]

TASKS = ("detect", "segment", "pose", "obb", "classify")
"""Tasks that data can be made for."""

MIN_IMAGES = 128
"""Few enough to be cached in the memory of every loader worker, many enough for epochs to be a second or more."""

MAX_OBJECTS = 14
"""COCO has 7.3 objects a picture, which is the mean of 1 to 14."""

Image = NDArray[np.uint8]
Boxes = NDArray[np.float64]


def images(count: int, size: int) -> Iterator[tuple[Image, Boxes]]:
    """Draw pictures.

    Args:
        count: How many.
        size: Their side in pixels.

    Yields:
        A picture, uint8 (size, size, 3), and its boxes as fractions of the side: left, top, right, bottom, (n, 4).
    """
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = rng.integers(0, 256, (20, 20, 3), np.uint8)
        image: Image = np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)
        sides = rng.uniform(0.05, 0.4, (rng.integers(1, MAX_OBJECTS + 1), 2))
        corners = rng.uniform(0, 1 - sides)
        boxes = np.hstack([corners, corners + sides])
        for left, top, right, bottom in (boxes * size).astype(int):
            image[top:bottom, left:right] = rng.integers(0, 256, 3, np.uint8)
        yield image, boxes


def write(root: Path, subject: Subject, batch: int, size: int) -> Path:
    """Write a data set with whole batches only.

    Args:
        root: An empty directory.
        subject: The model that it is for.
        batch: Images a batch.
        size: Side of an image in pixels.

    Returns:
        What Ultralytics takes as `data`.
    """
    count = max(-(-MIN_IMAGES // batch), 2) * batch
    for split, number in (("train", count), ("val", 2)):  # a trainer wants a validation set, though it isn't used
        for i, (image, boxes) in enumerate(images(number, size)):
            place = root / split / str(i % 2) if subject.task == "classify" else root / "images" / split
            place.mkdir(parents=True, exist_ok=True)
            # OpenCV's own `imwrite` knows, on Windows, no path outside the system's code page
            (place / f"{i}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
            if subject.task != "classify":
                labels = root / "labels" / split
                labels.mkdir(parents=True, exist_ok=True)
                rows = [_row(i + j, box, subject) for j, box in enumerate(boxes)]
                (labels / f"{i}.txt").write_text("\n".join(rows), encoding="utf-8")
    return root if subject.task == "classify" else _describe(root, subject)


def _row(number: int, box: Boxes, subject: Subject) -> str:
    """Return a label as Ultralytics reads it for the task."""
    values = _FORMS[subject.task](box, subject)
    return " ".join([str(number % subject.classes), *(f"{value:.6f}" for value in values)])


def _centred(box: Boxes, subject: Subject) -> list[float]:
    left, top, right, bottom = box.tolist()
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _cornered(box: Boxes, subject: Subject) -> list[float]:
    left, top, right, bottom = box.tolist()
    return [left, top, right, top, right, bottom, left, bottom]


def _with_keypoints(box: Boxes, subject: Subject) -> list[float]:
    """Return the box, and key points that lie evenly on its diagonal, all of them visible."""
    points, values = subject.keypoints
    left, top, right, bottom = box.tolist()
    diagonal = np.column_stack([np.linspace(left, right, points), np.linspace(top, bottom, points), np.full(points, 2)])
    return [*_centred(box, subject), *diagonal[:, :values].ravel().tolist()]


_FORMS: dict[str, Callable[[Boxes, Subject], list[float]]] = {
    "detect": _centred,
    "segment": _cornered,
    "obb": _cornered,
    "pose": _with_keypoints,
}


def _describe(root: Path, subject: Subject) -> Path:
    description: dict[str, object] = {
        "path": str(root.resolve()),
        "train": "images/train",
        "val": "images/val",
        "names": [str(number) for number in range(subject.classes)],
    }
    if subject.task == "pose":
        description.update(kpt_shape=subject.keypoints, flip_idx=[*range(subject.keypoints[0])])
    path = root / "data.yaml"
    # JSON is YAML too, and leaves no doubt about spaces, backslashes and the names being strings
    path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in description.items()), encoding="utf-8")
    return path
