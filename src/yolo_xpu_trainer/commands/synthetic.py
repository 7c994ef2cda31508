"""Synthetic data sets for every task: coloured rectangles, rotated, on noise, drawn from a fixed seed.

The bench and the tests train on them. Neither PyTorch nor Ultralytics is imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = [
    "FEW",
    "MANY",
    "NAMES",
    "TASKS",
    "Density",
    "Scene",
    "draw",
    "row",
    "write",
    "write_description",
    "write_image",
    "write_labels",
]

TASKS = ("detect", "segment", "semantic", "depth", "classify", "pose", "obb")
NAMES = ("red block", "green block", "blue block")
_COLOURS = ((40, 40, 220), (40, 200, 60), (220, 80, 40))  # BGR
_GRAINS = 64  # the noise has at most this many grains along each side

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Density:
    """How many rectangles an image has, and how large they are.

    Attributes:
        most: An image has 1 to `most` rectangles.
        half: Range of half the length of a side, as a fraction of the image's side.
        centre: Range of the coordinates of the centres, as fractions; every rectangle must end within the image.
    """

    most: int
    half: tuple[float, float]
    centre: tuple[float, float]


FEW = Density(3, (0.1, 0.2), (0.3, 0.7))
MANY = Density(14, (0.025, 0.15), (0.22, 0.78))
"""7.5 rectangles an image on average; COCO has 7.3 objects."""


@dataclass(frozen=True)
class Scene:
    """An image and its rectangles.

    Attributes:
        image: uint8 (size, size, 3), BGR.
        classes: Class of each rectangle.
        corners: Corners of each rectangle in pixels, float (n, 4, 2), clockwise; later rectangles are on top.
    """

    image: Image
    classes: list[int]
    corners: Floats


def draw(size: int, rng: np.random.Generator, classes: int = len(NAMES), density: Density = FEW) -> Scene:
    """Draw rectangles on noise; the colours of the classes repeat after three."""
    grains = min(size, _GRAINS)
    image: Image = rng.integers(70, 130, (grains, grains, 3)).astype(np.uint8)
    if grains < size:
        image = np.asarray(cv2.resize(image, (size, size)), np.uint8)
    drawn, corners = [], []
    for _ in range(rng.integers(1, density.most + 1)):
        half = rng.uniform(*density.half, 2) * size
        angle = rng.uniform(0, np.pi / 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        box = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ turn.T + rng.uniform(*density.centre, 2) * size
        drawn.append(int(rng.integers(classes)))
        corners.append(box)
        cv2.fillPoly(image, [box.round().astype(np.int32)], _COLOURS[drawn[-1] % len(_COLOURS)])
    return Scene(image, drawn, np.array(corners))


def write(
    task: str,
    root: Path,
    images: int = 8,
    size: int = 64,
    *,
    val: int | None = None,
    names: Sequence[str] = NAMES,
    classes: int | None = None,
    density: Density = FEW,
    keypoints: tuple[int, int] = (4, 3),
    suffix: str = ".png",
) -> Path:
    """Write a data set; the same arguments write the same bytes.

    Args:
        task: Of `TASKS`.
        root: The directory to write to.
        images: Number of training images.
        size: Side of an image in pixels.
        val: Number of validation images, by default as many as training images.
        names: Of the classes. "classify" uses the first three at most, "depth" none.
        classes: Number of classes that are drawn, by default as many as there are names.
        density: How many rectangles an image has.
        keypoints: For "pose": points of an object, and values of a point, 2 or 3.
        suffix: Format of the images: ".png", or ".jpg", which is smaller.

    Returns:
        What Ultralytics takes as `data`.
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("val", images if val is None else val)):
        for i in range(count):
            if task == "classify":
                number = i % min(len(names), len(_COLOURS))
                write_image(root / split / names[number] / f"{i}{suffix}", _one_colour(number, size, rng))
                continue
            scene = draw(size, rng, classes or len(names), density)
            write_image(root / "images" / split / f"{i}{suffix}", scene.image)
            if task == "semantic":
                write_image(root / "masks" / split / f"{i}.png", _mask(scene))
            elif task == "depth":
                write_image(root / "depth" / split / f"{i}.png", _depth(scene))
            else:
                write_labels(root / "labels" / split / f"{i}.txt", _labels(task, scene, keypoints))
    if task == "classify":
        return root
    points = keypoints[0]
    flipped = [(points // 4 - k) % points for k in range(points)]  # of the four corners: the other one of the same edge
    more: dict[str, dict[str, object]] = {
        "pose": {"kpt_shape": [*keypoints], "flip_idx": flipped},
        "semantic": {"masks_dir": "masks"},
        "depth": {"nc": 1, "channels": 3, "depth_scale": 1000},
    }
    return write_description(root, ["depth"] if task == "depth" else names, **more.get(task, {}))


def _one_colour(number: int, size: int, rng: np.random.Generator) -> Image:
    """Return an image of the class's colour, with noise."""
    noise = rng.integers(-30, 30, (size, size, 3))
    return np.clip(np.array(_COLOURS[number]) + noise, 0, 255).astype(np.uint8)


def _labels(task: str, scene: Scene, keypoints: tuple[int, int]) -> list[str]:
    """Return polygons for "segment" and "obb", upright boxes for "detect", boxes with key points for "pose"."""
    rows = []
    for number, corners in zip(scene.classes, scene.corners / len(scene.image), strict=True):
        low, high = corners.min(0), corners.max(0)
        box = np.concatenate([(low + high) / 2, high - low])
        if task == "pose":
            box = np.concatenate([box, _outline(corners, *keypoints)])
        rows.append(row(number, corners if task in ("segment", "obb") else box))
    return rows


def _outline(corners: Floats, points: int, values: int) -> Floats:
    """Return visible key points at equal distances along the outline, from the first corner on."""
    at = np.linspace(0, 4, points, endpoint=False)
    x, y = (np.interp(at, range(5), np.append(axis, axis[0])) for axis in corners.T)
    return np.column_stack([x, y, np.full(points, 2)])[:, :values].ravel()


def _mask(scene: Scene) -> Image:
    """Return the class of each pixel, 255 for none."""
    mask = np.full(scene.image.shape[:2], 255, np.uint8)
    for number, corners in zip(scene.classes, scene.corners, strict=True):
        cv2.fillPoly(mask, [corners.round().astype(np.int32)], number)
    return mask


def _depth(scene: Scene) -> npt.NDArray[np.uint16]:
    """Return the distance of each pixel in millimetres: the ground recedes, the rectangles are one metre away."""
    size = len(scene.image)
    distance = np.linspace(4000, 1500, size).astype(np.uint16)[:, None].repeat(size, 1)
    for corners in scene.corners:
        cv2.fillPoly(distance, [corners.round().astype(np.int32)], 1000)
    return distance


def write_image(path: Path, image: npt.NDArray[Any]) -> None:
    """Write an image in the format of the path's suffix, and make its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # cv2.imwrite fails on Windows for paths outside the system's code page
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def write_labels(path: Path, rows: Sequence[str]) -> None:
    """Write a label file, and make its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows), encoding="utf-8")


def write_description(root: Path, names: Sequence[str], **more: object) -> Path:
    """Write `data.yaml` into `root`, with further entries, and return its path."""
    path = root / "data.yaml"
    # absolute: Ultralytics looks for a relative path in its own data directory
    content = {"path": str(root.resolve()), "train": "images/train", "val": "images/val", "names": [*names], **more}
    # JSON is YAML too, and quotes spaces, backslashes and names that look like numbers
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items()), encoding="utf-8")
    return path


def row(number: int, values: npt.ArrayLike) -> str:
    """Return a line of a label file: a class and its coordinates, as fractions of the image's side."""
    return " ".join([str(number), *(f"{value:.6f}" for value in np.ravel(values))])
