"""The demo: its digits, images and files, a small run, and what it refuses."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from yolo_xpu_trainer.commands import main
from yolo_xpu_trainer.commands.arguments import make_directory
from yolo_xpu_trainer.commands.demo import scenes
from yolo_xpu_trainer.commands.demo.dataset import (
    NAMES,
    DataSet,
    labels,
    load_digits,
    split_digits,
    write_dataset,
)
from yolo_xpu_trainer.commands.demo.scenes import Box, Digits, Scene, make_scenes
from yolo_xpu_trainer.commands.synthetic import write_image

pytestmark = pytest.mark.slow

needs_digits = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="the extra `demo` is not installed"
)
TINY = ["demo", "--epochs", "1", "--images", "16", "--imgsz", "64"]


@pytest.fixture(scope="module")
def handwriting() -> Digits:
    pytest.importorskip("sklearn")
    return load_digits()


@pytest.fixture(scope="module")
def some_scenes(handwriting: Digits) -> list[Scene]:
    return list(make_scenes(handwriting, count=20, size=128, seed=(0, 0)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    pytest.importorskip("sklearn")
    return write_dataset(tmp_path_factory.mktemp("demo") / "with space", images=20, size=96, seed=3)


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return classes, int (n,), and boxes: left, top, right, bottom as fractions, (n, 4)."""
    found = np.loadtxt(path, ndmin=2).reshape(-1, 5)
    centres, sides = found[:, 1:3], found[:, 3:]
    return found[:, 0].astype(int), np.hstack([centres - sides / 2, centres + sides / 2])


def contents(data: DataSet) -> dict[str, bytes]:
    """Return each image and label file of a data set, by its path within."""
    files = [path for kind in ("images", "labels") for path in (data.root / kind).rglob("*.*")]
    return {path.relative_to(data.root).as_posix(): path.read_bytes() for path in files}


def test_splits_share_no_handwriting(handwriting: Digits) -> None:
    parts = split_digits(handwriting, seed=0)
    train, val = (set(parts[split].samples.tolist()) for split in ("train", "val"))
    assert not train & val
    assert len(train | val) == len(handwriting.samples)
    assert 0.15 < len(val) / len(handwriting.samples) < 0.25
    assert set(parts["val"].classes.tolist()) == set(range(10))


def test_split_depends_on_seed(handwriting: Digits) -> None:
    parts = [split_digits(handwriting, seed)["val"].samples.tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_classes_match_the_handwriting(handwriting: Digits, some_scenes: list[Scene]) -> None:
    for scene in some_scenes:
        assert len(scene.boxes) == len(scene.classes) >= 1
        assert scene.classes.tolist() == handwriting.classes[scene.samples].tolist()


def test_handwriting_repeats_only_after_all_was_drawn(handwriting: Digits) -> None:
    few = handwriting.take(np.arange(40))
    seen = [number for scene in make_scenes(few, count=5, size=256, seed=(1,)) for number in scene.samples.tolist()]
    assert len(seen) == len(set(seen))


def test_boxes_are_inside_and_disjoint(some_scenes: list[Scene]) -> None:
    for scene in some_scenes:
        height, width, channels = scene.image.shape
        assert (height, width, channels, scene.image.dtype) == (128, 128, 3, np.uint8)
        for index, box in enumerate(scene.boxes):
            assert 0 <= box.left < box.right <= width
            assert 0 <= box.top < box.bottom <= height
            assert not any(box.overlaps(other) for other in scene.boxes[:index])


def test_boxes_are_tight(handwriting: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(size: int, rng: np.random.Generator) -> np.ndarray:
        return np.full((size, size, 3), 90, np.float32)

    class NoGrain(np.random.Generator):
        def normal(self, *args: object, **kwargs: object) -> float:  # type: ignore[override]
            return 0.0

    monkeypatch.setattr(scenes, "draw_background", plain)
    for seed in range(20):
        picked = handwriting.take(np.arange(seed * 5, seed * 5 + 5))
        scene = scenes.draw_scene(picked, 128, NoGrain(np.random.PCG64(seed)))
        ink = (scene.image != 90).any(axis=2)
        for left, top, right, bottom in scene.boxes:
            rows, columns = ink[top:bottom, left:right].any(axis=1), ink[top:bottom, left:right].any(axis=0)
            assert rows[0]
            assert rows[-1]
            assert columns[0]
            assert columns[-1]
            ink[top:bottom, left:right] = False
        assert not ink.any()  # nothing was drawn outside the boxes


@pytest.mark.parametrize("angle", [-15.0, 0.0, 15.0])
def test_rendered_digit_is_complete(handwriting: Digits, angle: float) -> None:
    """Scaled down to the original's size, it matches the original: neither mirrored nor cut off."""
    for ink in handwriting.images[:20]:
        big = scenes.render_digit(ink, height=64, angle=0)
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        original = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        small = cv2.resize(big, original.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.corrcoef(small.ravel(), original.ravel())[0, 1] > 0.7
        turned = scenes.render_digit(ink, height=64, angle=angle)
        assert turned.sum() == pytest.approx(big.sum(), rel=0.1)


def test_colour_contrasts_with_background() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        behind = np.full((4, 4, 3), rng.uniform(0, 255, 3), np.float32)
        colour = scenes.pick_colour(behind, rng)
        assert colour.min() >= 0
        assert colour.max() <= 255
        assert abs(float(colour.mean()) - float(behind.mean())) > 50


def test_box_overlaps() -> None:
    box = Box(10, 10, 20, 20)
    assert box.overlaps(Box(19, 19, 30, 30))
    assert box.overlaps(Box(12, 12, 14, 14))
    assert not box.overlaps(Box(20, 10, 30, 20))
    assert not box.overlaps(Box(10, 20, 20, 30))


def test_data_set_is_deterministic(dataset: DataSet, tmp_path: Path) -> None:
    again = write_dataset(tmp_path / "again", images=20, size=96, seed=3)
    assert contents(again) == contents(dataset)
    other = write_dataset(tmp_path / "other", images=20, size=96, seed=4)
    assert contents(other) != contents(dataset)


def test_every_image_has_labels(dataset: DataSet) -> None:
    names = contents(dataset)
    assert dataset.images == {"train": 16, "val": 4}
    for split, count in dataset.images.items():
        images = sorted((dataset.root / "images" / split).iterdir())
        assert len(images) == count
        digits = 0
        for image in images:
            assert f"labels/{split}/{image.stem}.txt" in names
            classes, boxes = read_labels(dataset.root / "labels" / split / f"{image.stem}.txt")
            assert cv2.imread(str(image)).shape == (96, 96, 3)
            assert set(classes.tolist()) <= set(range(10))
            assert boxes.min() > -1e-6
            assert boxes.max() < 1 + 1e-6
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            digits += len(classes)
        assert digits == dataset.digits[split]


def test_labels_round_trip(some_scenes: list[Scene], tmp_path: Path) -> None:
    for scene in some_scenes:
        (tmp_path / "labels.txt").write_text("\n".join(labels(scene)))
        classes, boxes = read_labels(tmp_path / "labels.txt")
        assert classes.tolist() == scene.classes.tolist()
        np.testing.assert_allclose(boxes * 128, np.array(scene.boxes), atol=1e-3)


def test_ultralytics_accepts_data_set(dataset: DataSet) -> None:
    from ultralytics.data.utils import check_det_dataset

    found = check_det_dataset(str(dataset.description), autodownload=False)
    assert found["names"] == dict(enumerate(NAMES))
    assert Path(found["train"]) == (dataset.root / "images" / "train").resolve()


def test_image_paths_may_be_unicode(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / "číslo 数字.png"
    write_image(path, image)
    assert (cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR) == image).all()


def test_directories_are_numbered(tmp_path: Path) -> None:
    wanted = tmp_path / "new" / "run"
    made = [make_directory(wanted) for _ in range(3)]
    assert [path.name for path in made] == ["run", "run-2", "run-3"]
    assert all(path.is_dir() and path.is_absolute() for path in made)


@needs_digits
def test_small_run_is_complete_and_deterministic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--device", "cpu"]) == 0
    run = tmp_path / "runs" / "xpu-demo"
    weights = run / "train" / "weights" / "best.pt"
    assert weights.is_file()
    assert (run / "train" / "results.png").is_file()
    pictures = [run / "train" / f"val_batch0_{name}.jpg" for name in ("labels", "pred")]
    assert all(cv2.imread(str(picture)).std() > 20 for picture in pictures)
    printed = capsys.readouterr().out
    for word in ("mAP50", "mAP50-95", str(weights), str(run / "train"), *map(str, pictures)):
        assert word in printed
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # nothing was written elsewhere

    assert main([*TINY, "--device", "cpu"]) == 0
    states = [
        torch.load(tmp_path / "runs" / name / "train" / "weights" / "last.pt", weights_only=False)["model"].state_dict()
        for name in ("xpu-demo", "xpu-demo-2")
    ]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key  # the same seed, the same training


@needs_digits
@pytest.mark.xpu_hardware
def test_small_run_on_xpu(xpu: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--output", "on xpu"]) == 0
    assert (tmp_path / "on xpu" / "train" / "val_batch0_pred.jpg").is_file()
    assert f"device {xpu}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--images", "9"], "--images: '9' was given; it must be an integer of at least 10"),
        (["--imgsz", "100"], "--imgsz: '100' was given; it must be an integer of at least 64 and a multiple of 32"),
        (["--epochs", "0"], "--epochs: '0' was given; it must be an integer of at least 1"),
        (["--seed", "-1"], "--seed: '-1' was given; it must be an integer of at least 0"),
        (["--epochs", "many"], "--epochs: 'many' was given; it must be an integer of at least 1"),
    ],
)
def test_bad_values_are_refused(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@needs_digits
def test_impossible_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main([*TINY, "--output", str(tmp_path / "file" / "run")]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "file" / "run") in message
    assert "--output" in message
    assert message.count("\n") == 1


@needs_digits
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write anywhere")
def test_unwritable_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert main([*TINY, "--output", str(tmp_path / "run")]) == 2
    assert "ermission" in capsys.readouterr().err
    tmp_path.chmod(0o700)


@needs_digits
def test_unknown_device_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_scikit_learn_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(TINY) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
