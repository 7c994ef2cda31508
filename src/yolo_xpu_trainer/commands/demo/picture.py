"""The demo's picture: held-out scenes with the truth on the left and the model's prediction on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from .dataset import DataSet, read_image, read_labels, write_image
from .scenes import Floats, Image, Integers
from .training import Trained

TILE = 384
"""Side of a scene in the picture, in pixels."""
GAP = 8
HEADER = 34
PAIRS_A_ROW = 2
RIGHT = (60, 160, 30)
WRONG = (40, 40, 220)
PAPER = (255, 255, 255)
INK = (40, 40, 40)
FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Findings:
    """Boxes of one scene.

    Attributes:
        boxes: Left, top, right, bottom as fractions of the scene's side, float32 (n, 4).
        classes: int64 (n,).
        captions: What to write at each box.
    """

    boxes: Floats
    classes: Integers
    captions: Sequence[str]

    def has_counterpart(self, other: Findings) -> npt.NDArray[np.bool_]:
        """Tell for each box, bool (n,), whether `other` has one of its class with an IoU of at least 0.5."""
        corner = np.maximum(self.boxes[:, None, :2], other.boxes[None, :, :2])
        far = np.minimum(self.boxes[:, None, 2:], other.boxes[None, :, 2:])
        shared = np.clip(far - corner, 0, None).prod(axis=2)
        areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (self.boxes, other.boxes)]
        iou = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
        same = self.classes[:, None] == other.classes[None]
        return np.asarray(((iou >= 0.5) & same).any(axis=1), np.bool_)


def save_comparison(trained: Trained, data: DataSet, path: Path, scenes: int = 6) -> None:
    """Predict some held-out scenes and save them beside the truth.

    Args:
        trained: The model to ask, on the device that it was trained on.
        data: Where the held-out scenes are.
        path: The PNG to write.
        scenes: How many of them to show.
    """
    sources = sorted((data.root / "images" / "val").glob("*.png"))[:scenes]
    pairs = []
    for source, predicted in zip(sources, predict(trained, sources), strict=True):
        image = read_image(source)
        classes, boxes = read_labels(data.root / "labels" / "val" / f"{source.stem}.txt")
        truth = Findings(boxes, classes, [str(number) for number in classes])
        pairs.append(
            np.hstack(
                [
                    draw_tile(image, truth, truth.has_counterpart(predicted)),
                    draw_tile(image, predicted, predicted.has_counterpart(truth)),
                ]
            )
        )
    write_image(path, arrange(pairs))


def predict(trained: Trained, sources: Sequence[Path]) -> list[Findings]:
    """Return what the model finds in each image."""
    from ultralytics import YOLO

    results = YOLO(trained.weights).predict(
        [str(source) for source in sources],
        imgsz=trained.imgsz,
        device=trained.device,
        agnostic_nms=True,  # digits don't overlap, so of two boxes in one place one is wrong, whatever its class
        iou=0.5,
        verbose=False,
    )
    findings = []
    for result in results:
        boxes = result.boxes.cpu().numpy()
        classes = boxes.cls.astype(np.int64)
        captions = [f"{number} {confidence:.2f}" for number, confidence in zip(classes, boxes.conf, strict=True)]
        findings.append(Findings(boxes.xyxyn.astype(np.float32), classes, captions))
    return findings


def draw_tile(image: Image, findings: Findings, right: npt.NDArray[np.bool_]) -> Image:
    """Return the scene, enlarged, with each box in green where `right`, bool (n,), and in red elsewhere."""
    tile: Image = cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_CUBIC)
    corners = np.clip(np.rint(findings.boxes * TILE), 0, TILE - 1).astype(int)
    colours = [RIGHT if good else WRONG for good in right]
    # first every rim, then every box, then every caption, so that a neighbour's box crosses out no caption
    for colour, thickness in ((PAPER, 4), (None, 2)):
        for box, own in zip(corners.tolist(), colours, strict=True):
            cv2.rectangle(tile, box[:2], box[2:], colour or own, thickness)
    for (left, top, _, _), caption, colour in zip(corners.tolist(), findings.captions, colours, strict=True):
        (width, height), _ = cv2.getTextSize(caption, FONT, 0.55, 1)
        x = min(left, TILE - width - 8)
        y = max(top, height + 8)  # above the box, or within where the scene ends
        cv2.rectangle(tile, (x, y - height - 8), (x + width + 8, y), colour, -1)
        cv2.putText(tile, caption, (x + 4, y - 4), FONT, 0.55, PAPER, 1, cv2.LINE_AA)
    framed: Image = cv2.copyMakeBorder(tile, HEADER, GAP, GAP // 2, GAP // 2, cv2.BORDER_CONSTANT, value=PAPER)
    return framed


def arrange(pairs: Sequence[Image]) -> Image:
    """Set pairs of tiles in rows, each tile with its heading, below a legend."""
    blank = np.full_like(pairs[0], 255)
    for pair in pairs:
        for text, left in (("truth", 0), ("prediction", pair.shape[1] // 2)):
            cv2.putText(pair, text, (left + GAP, HEADER - 10), FONT, 0.65, INK, 1, cv2.LINE_AA)
    rows = []
    for start in range(0, len(pairs), PAIRS_A_ROW):
        row = list(pairs[start : start + PAIRS_A_ROW])
        row += [blank] * (min(PAIRS_A_ROW, len(pairs)) - len(row))
        separated = [cv2.copyMakeBorder(p, 0, 0, 2 * GAP, 2 * GAP, cv2.BORDER_CONSTANT, value=PAPER) for p in row]
        rows.append(np.hstack(separated))
    sheet: Image = np.vstack(rows)
    legend = np.full((HEADER, sheet.shape[1], 3), 255, np.uint8)
    text = "green: truth and prediction agree   red: missed, misread or not there"
    cv2.putText(legend, text, (3 * GAP, HEADER - 8), FONT, 0.55, INK, 1, cv2.LINE_AA)
    return np.vstack([legend, sheet])
