"""Bad input ends in an error of Ultralytics' or of ours that names it, and nothing is overwritten."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO

import yolo_xpu_trainer
from yolo_xpu_trainer import XPUSegmentationTrainer, XPUTrainerError
from yolo_xpu_trainer.run import CHECKPOINT_KEY

from ..conftest import Train
from ..datasets import WRITERS

PACKAGE = str(Path(yolo_xpu_trainer.__file__).parent)


class StoppedError(Exception):
    """Ends a run after its first epoch."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the checkpoint of a run that was stopped after an epoch."""
    from .. import training

    def stop(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise StoppedError

    folder = tmp_path_factory.mktemp("stopped")
    data = str(WRITERS["detect"](folder / "data"))
    with pytest.raises(StoppedError):
        training.train(
            data, epochs=3, device="xpu:0", project=str(folder), name="run", callbacks={"on_train_epoch_start": stop}
        )
    return (folder / "run" / "weights" / "last.pt").read_bytes()


@pytest.fixture
def last(xpu: torch.device, stopped: bytes, tmp_path: Path) -> Path:
    """Write that checkpoint to a file of the test's own."""
    path = tmp_path / "last.pt"
    path.write_bytes(stopped)
    return path


def not_ours(error: BaseException) -> bool:
    """Whether an error is one that we raise for users, or doesn't come from our code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    asked = isinstance(error, KeyError) and frame.name == "__getitem__"  # what isn't there is the caller's question
    return isinstance(error, XPUTrainerError) or asked or not frame.filename.startswith(PACKAGE)


def as_list(path: Path) -> None:
    torch.save([1, 2], path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"hello" * 1000),
        as_list,
    ],
    ids=["truncated", "empty", "something else", "of another program"],
)
def test_a_checkpoint_that_is_none_is_refused_and_stays_as_it_is(last: Path, spoil: Callable[[Path], Any]) -> None:
    spoil(last)
    before = last.read_bytes()
    for resume in (
        lambda: YOLO(last).train(resume=True, device="xpu:0"),
        lambda: YOLO("yolo11n.yaml").train(resume=str(last), device="xpu:0"),
    ):
        with pytest.raises(Exception) as refused:  # noqa: PT011 - of Ultralytics' choice
            resume()
        assert not_ours(refused.value)
    assert last.read_bytes() == before


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {"device": 5, "precision": ["bf16"], "options": "no", "scaler": 3},
        {"device": "xpu:0", "precision": "fp7", "options": {"prefetch": "many", "unknown": 1}},
    ],
    ids=str,
)
def test_what_a_checkpoint_remembers_wrongly_is_left_out(last: Path, settings: Any) -> None:
    torch.save({**torch.load(last, map_location="cpu", weights_only=False), CHECKPOINT_KEY: settings}, last)
    model = YOLO(last)
    model.train(resume=True, device="xpu:0")
    assert model.trainer.xpu.precision.name == "bf16"
    assert model.trainer.xpu.options.decided() == {}


def test_a_checkpoint_of_another_task_fails_as_in_ultralytics(last: Path, log: list[Any]) -> None:
    with pytest.raises(KeyError) as refused:
        YOLO(last).train(resume=True, trainer=XPUSegmentationTrainer)
    assert not_ours(refused.value)
    assert not [record for record in log if "is switched off" in record.getMessage()]


def spoil_images(folder: Path) -> None:
    for path in (folder / "images" / "train").iterdir():
        path.write_bytes(b"not an image")


def spoil_labels(folder: Path, row: str) -> None:
    for path in (folder / "labels" / "train").iterdir():
        path.write_text(row)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_images, "No valid images"),
        (lambda folder: spoil_labels(folder, "99 0.5 0.5 0.2 0.2\n"), "No valid images"),
        (lambda folder: spoil_labels(folder, "0 5 5 2 2\n"), "No valid images"),
        (lambda folder: (folder / "data.yaml").write_text(""), "'train:' key missing"),
        (lambda folder: (folder / "data.yaml").unlink(), "does not exist"),
    ],
    ids=["images", "classes", "coordinates", "description", "no description"],
)
def test_data_that_are_wrong_end_a_run_before_its_first_batch(
    train: Train, tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    description = Path(WRITERS["detect"](tmp_path / "data", images=4))
    spoil(description.parent)
    with pytest.raises(Exception, match=said) as refused:
        train(data=str(description))
    assert not_ours(refused.value)


def test_a_folder_that_cannot_be_made_ends_a_run_with_its_name(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError, match="file") as refused:
        train(project=str(tmp_path / "file"))
    assert not_ours(refused.value)
    assert (tmp_path / "file").read_text() == "a file"


NOT_ALLOWED = (  # a superuser's program is, unless it gives that right up
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
)


@pytest.mark.skipif(os.name == "nt" or (bool(NOT_ALLOWED) and not shutil.which("setpriv")), reason="needs setpriv")
@pytest.mark.parametrize("when", ["before", "in an epoch"])
def test_a_folder_that_is_read_only_ends_a_run_with_its_name_and_stays_as_it_is(
    last: Path, tmp_path: Path, when: str
) -> None:
    weights = tmp_path / "run" / "weights"
    weights.mkdir(parents=True)
    checkpoint = torch.load(last, map_location="cpu", weights_only=False)
    checkpoint["train_args"]["save_dir"] = str(weights.parent)
    torch.save(checkpoint, weights / "last.pt")
    script = """
import sys
from pathlib import Path
from ultralytics import YOLO
from yolo_xpu_trainer.__main__ import main

weights = Path(sys.argv[1])
def close(*args):
    for folder in (weights.parent, weights):
        folder.chmod(0o555)
if sys.argv[2] == "before":
    close()
    sys.exit(main(["train", "resume=True", f"model={weights / 'last.pt'}"]))
model = YOLO(weights / "last.pt")
model.add_callback("on_train_epoch_start", close)
model.train(resume=True)
"""
    command = [*NOT_ALLOWED, sys.executable, "-c", script, str(weights), when]
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580"}
    before = (weights / "last.pt").read_bytes()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    finally:
        for folder in (weights.parent, weights):
            folder.chmod(0o755)
    assert done.returncode not in (0, None)
    said = done.stderr
    assert "ermission denied" in said
    assert str(weights.parent) in said
    if when == "in an epoch":
        assert f"{weights / 'last.pt'} is whole" in said
    assert (weights / "last.pt").read_bytes() == before
    assert not list(weights.glob(".*"))
