"""The demo's images: handwritten digits on drawn textures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

MIN_ALPHA = 0.25
"""Fainter parts of a digit's blurred edge aren't drawn, so that its box fits what is visible."""


@dataclass(frozen=True)
class Digits:
    """Handwriting samples.

    Attributes:
        images: Ink, float32 (n, 8, 8), 0 to 1.
        classes: The digit that each one shows, int64 (n,).
        samples: Number of each one in scikit-learn's data set, int64 (n,).
    """

    images: Floats
    classes: Integers
    samples: Integers

    def take(self, which: Integers) -> Digits:
        """Return the digits at the positions `which`, int64 (m,)."""
        return Digits(self.images[which], self.classes[which], self.samples[which])


class Box(NamedTuple):
    """A rectangle of pixels; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: Box) -> bool:
        """Whether the two share a pixel."""
        beside = self.left >= other.right or self.right <= other.left
        return not (beside or self.top >= other.bottom or self.bottom <= other.top)

    def of(self, canvas: Floats) -> Floats:
        """Return the part of `canvas`, float32 (height, width, 3), in the box, as a view."""
        return canvas[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class Scene:
    """An image and its digits.

    Attributes:
        image: uint8 (size, size, 3), BGR.
        boxes: The tight box of each digit; no two overlap.
        classes: The digit in each box, int64 (n,).
        samples: Its number in scikit-learn's data set, int64 (n,).
    """

    image: Image
    boxes: list[Box]
    classes: Integers
    samples: Integers


def make_scenes(digits: Digits, count: int, size: int, seed: tuple[int, ...]) -> Iterator[Scene]:
    """Draw scenes; every digit is drawn once before any is drawn again.

    Args:
        digits: What to draw from.
        count: Number of scenes.
        size: Side of a scene in pixels.
        seed: Seed of the random generators.

    Yields:
        The scenes.
    """
    dealer = np.random.default_rng([*seed, 0])
    deck = np.empty(0, np.int64)
    for index in range(count):
        # a generator per scene, so that a scene doesn't depend on those before it
        rng = np.random.default_rng([*seed, 1, index])
        wanted = int(rng.integers(3, 8))
        if len(deck) < wanted:
            deck = np.concatenate([deck, dealer.permutation(len(digits.samples))])
        yield draw_scene(digits.take(deck[:wanted]), size, rng)
        deck = deck[wanted:]


def draw_scene(digits: Digits, size: int, rng: np.random.Generator) -> Scene:
    """Draw the given digits on a new background, except those for which there is no free place."""
    canvas = draw_background(size, rng)
    boxes: list[Box] = []
    drawn: list[int] = []
    for position, ink in enumerate(digits.images):
        alpha = render_digit(ink, height=size * rng.uniform(0.18, 0.36), angle=rng.uniform(-15, 15))
        box = find_place(alpha, size, boxes, rng)
        if box is not None:
            behind = box.of(canvas)
            blend(behind, alpha, pick_colour(behind, rng))
            boxes.append(box)
            drawn.append(position)
    grain = rng.normal(0, rng.uniform(0, 6), canvas.shape)
    image = np.clip(canvas + grain, 0, 255).astype(np.uint8)
    kept = digits.take(np.array(drawn, np.int64))
    return Scene(image, boxes, kept.classes, kept.samples)


def draw_background(size: int, rng: np.random.Generator) -> Floats:
    """Return clouds and stripes between two colours, and a few shapes: float32 (size, size, 3), 0 to 255."""
    texture = np.zeros((size, size), np.float32)
    for cells in (2, 5, 12, 40):
        coarse = rng.random((cells, cells), dtype=np.float32)
        texture += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) * rng.uniform(0, 1)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    turn, waves = rng.uniform(0, np.pi), rng.uniform(3, 16)
    stripes = np.sin(2 * np.pi * waves * (x * np.cos(turn) + y * np.sin(turn)))
    texture += stripes * rng.choice([0.0, 0.15, 0.3])
    texture -= texture.min()
    texture /= max(float(texture.max()), 1e-6)
    first = rng.uniform(20, 235, 3)
    second = np.clip(first + rng.uniform(-70, 70, 3), 0, 255)
    canvas = (first + texture[..., None] * (second - first)).astype(np.float32)
    for _ in range(rng.integers(0, 5)):  # so that not everything with an edge is a digit
        draw_clutter(canvas, rng)
    return canvas


def draw_clutter(canvas: Floats, rng: np.random.Generator) -> None:
    """Draw one disc, rectangle or line onto `canvas`, float32 (size, size, 3), in place."""
    size = canvas.shape[0]
    (x0, y0), (x1, y1) = rng.integers(0, size, (2, 2)).tolist()
    colour = np.clip(canvas[y0, x0] + rng.uniform(-60, 60, 3), 0, 255).tolist()
    kind = rng.integers(3)
    if kind == 0:
        cv2.circle(canvas, (x0, y0), int(size * rng.uniform(0.03, 0.2)), colour, -1)
    elif kind == 1:
        cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, -1)
    else:
        cv2.line(canvas, (x0, y0), (x1, y1), colour, int(rng.integers(1, 4)))


def render_digit(ink: Floats, height: float, angle: float) -> Floats:
    """Enlarge and turn one digit.

    Args:
        ink: float32 (8, 8), 0 to 1.
        height: Height of the 8 by 8 field in pixels.
        angle: Counter-clockwise, in degrees.

    Returns:
        The digit's opacity, float32 (h, w): 0, or `MIN_ALPHA` to 1; some ink in each outermost row and column.
    """
    rows, columns = ink.shape
    side = int(np.ceil(height * 1.5))  # room for the corners of a turned field
    centre = np.array([columns - 1, rows - 1]) / 2
    matrix = cv2.getRotationMatrix2D(centre.tolist(), angle, height / rows)
    matrix[:, 2] += (side - 1) / 2 - centre
    big = cv2.warpAffine(ink, matrix, (side, side), flags=cv2.INTER_CUBIC)
    alpha: Floats = np.clip((big - 0.2) / 0.35, 0, 1)  # from a blurred enlargement back to pen strokes
    alpha[alpha < MIN_ALPHA] = 0
    inked = [np.flatnonzero(alpha.any(axis=axis)) for axis in (1, 0)]
    cropped: Floats = alpha[tuple(slice(lines[0], lines[-1] + 1) for lines in inked)]
    return cropped


def find_place(alpha: Floats, size: int, taken: list[Box], rng: np.random.Generator) -> Box | None:
    """Return a free place for the digit `alpha`, float32 (h, w), or None after 30 attempts."""
    height, width = alpha.shape
    for _ in range(30):
        left, top = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
        box = Box(left, top, left + width, top + height)
        if not any(box.overlaps(other) for other in taken):
            return box
    return None


def pick_colour(behind: Floats, rng: np.random.Generator) -> Floats:
    """Return a colour, float32 (3,), that contrasts with the background, float32 (h, w, 3)."""
    brightness = float(behind.mean())
    contrast = rng.uniform(70, 140)
    darker, lighter = brightness - contrast, brightness + contrast
    goal = lighter if lighter <= 255 and (darker < 0 or rng.random() < 0.5) else darker
    colour = goal + rng.uniform(-40, 40, 3)
    shifted: Floats = np.clip(colour + goal - colour.mean(), 0, 255).astype(np.float32)
    return shifted


def blend(behind: Floats, alpha: Floats, colour: Floats) -> None:
    """Paint `colour`, float32 (3,), over `behind`, float32 (h, w, 3), where `alpha`, float32 (h, w), has ink."""
    behind += alpha[..., None] * (colour - behind)
