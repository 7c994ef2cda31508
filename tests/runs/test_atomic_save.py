"""`last.pt`, `best.pt`, `epochN.pt` and `results.csv` are whole, whatever ends a run while they are written."""

from __future__ import annotations

import csv
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import NotSavedError, XPUTrainer
from yolo_xpu_trainer.files import AtomicPath
from yolo_xpu_trainer.policies import atomic_save

from ..conftest import Train, TrainingData

_UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture(autouse=True)
def _any_size() -> Any:
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (_UNLIMITED, _UNLIMITED))


def full_from(bytes_: int) -> None:
    """Let no file grow beyond so many bytes from now on, as on a disk that gets full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, _UNLIMITED))


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    assert (loaded["ema"] or loaded["model"]) is not None
    return loaded


def rows(folder: Path) -> list[list[str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.reader(file))


def no_leftovers(folder: Path) -> bool:
    return not list(folder.rglob(".*.part"))


def test_what_is_written_is_what_ultralytics_writes(train: Train) -> None:
    before = torch.save
    arguments: dict[str, Any] = {"epochs": 2, "save_period": 1, "amp": False, "device": "xpu:0"}
    ours, plain = train(**arguments), train(plain=True, **arguments)
    names = {p.relative_to(ours.save_dir) for p in ours.save_dir.rglob("*") if p.suffix in (".pt", ".csv")}
    checkpoints = {Path("weights") / name for name in ("last.pt", "best.pt", "epoch0.pt", "epoch1.pt")}
    assert names == {Path("results.csv"), *checkpoints}
    for name in checkpoints:
        assert load(ours.save_dir / name).keys() - {"xpu_trainer"} == load(plain.save_dir / name).keys()
    assert [len(row) for row in rows(ours.save_dir)] == [len(row) for row in rows(plain.save_dir)]
    assert rows(ours.save_dir)[0] == rows(plain.save_dir)[0]
    assert no_leftovers(ours.save_dir)
    assert not isinstance(ours.last, AtomicPath)
    assert torch.save is before


# How much of a file the disk still takes, by the sizes of the last results.csv and last.pt.
_MOMENTS: dict[str, Callable[[int, int], int]] = {
    "results.csv, old rows": lambda table, checkpoint: 10,
    "results.csv, first byte of the row": lambda table, checkpoint: table,
    "results.csv, within the row": lambda table, checkpoint: table + 20,
    "last.pt, first block": lambda table, checkpoint: table + 1000,
    "last.pt, middle": lambda table, checkpoint: checkpoint // 2,
    "last.pt, last block": lambda table, checkpoint: checkpoint - 100,
}


@pytest.mark.parametrize("moment", list(_MOMENTS))
def test_a_full_disk_leaves_the_files_of_the_epoch_before(train: Train, moment: str) -> None:
    from yolo_xpu_trainer import XPUDetectionTrainer

    kept: dict[str, Any] = {}
    file, _, _ = moment.partition(",")

    class OnAFullDisk(XPUDetectionTrainer):
        def save_metrics(self, *args: Any, **kwargs: Any) -> None:
            if self.epoch == 1:
                kept.update(folder=self.save_dir, last=self.last.read_bytes(), rows=rows(self.save_dir))
            self._fill(super().save_metrics, "results.csv", *args, **kwargs)

        def save_model(self) -> Any:
            return self._fill(super().save_model, "last.pt")

        def _fill(self, write: Callable[..., Any], written: str, *args: Any, **kwargs: Any) -> Any:
            if kept and file == written:
                full_from(_MOMENTS[moment](self.csv.stat().st_size, len(kept["last"])))
            try:
                return write(*args, **kwargs)
            finally:
                full_from(_UNLIMITED)

    with pytest.raises(NotSavedError) as refused:
        train(trainer=OnAFullDisk, epochs=3)
    folder = kept["folder"]
    assert (folder / "weights" / "last.pt").read_bytes() == kept["last"]
    assert load(folder / "weights" / "best.pt")["epoch"] == 0
    assert rows(folder)[: len(kept["rows"])] == kept["rows"]
    assert all(len(row) == len(kept["rows"][0]) for row in rows(folder))
    assert no_leftovers(folder)
    text = str(refused.value)
    assert "Epoch 2 can't be saved to" in text
    assert "Free some space, then go on with `yolo train resume=True model=" in text
    assert refused.value.errno in (errno.EFBIG, errno.ENOSPC)


def test_a_full_disk_in_the_final_evaluation_leaves_what_can_be_resumed(train: Train) -> None:
    kept: dict[str, Any] = {}

    def fill(trainer: Any) -> None:
        kept.update(folder=trainer.save_dir, last=trainer.last.read_bytes())
        full_from(100_000)

    with pytest.raises(NotSavedError, match=r"only a part of it was written"):
        train(callbacks={"on_fit_epoch_end": fill})
    resource.setrlimit(resource.RLIMIT_FSIZE, (_UNLIMITED, _UNLIMITED))
    weights = kept["folder"] / "weights"
    assert load(weights / "best.pt")
    assert (weights / "last.pt").read_bytes() == kept["last"]
    assert no_leftovers(kept["folder"])


def test_a_rename_that_fails_leaves_the_old_file(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if kept and Path(target).name == "last.pt":
            raise OSError(errno.EROFS, "Read-only file system")
        replace(source, target)

    def note(trainer: Any) -> None:
        if trainer.epoch == 1:
            kept.update(folder=trainer.save_dir, last=trainer.last.read_bytes())

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(NotSavedError, match="Read-only file system"):
        train(epochs=2, callbacks={"on_train_epoch_end": note})
    assert (kept["folder"] / "weights" / "last.pt").read_bytes() == kept["last"]
    assert no_leftovers(kept["folder"])


def test_a_trainer_that_saves_by_itself_is_covered(train: Train) -> None:
    from yolo_xpu_trainer import XPUDetectionTrainer

    seen: list[str] = []

    class Own(XPUDetectionTrainer):
        def save_model(self) -> None:
            full_from(1000)
            try:
                torch.save({"epoch": self.epoch, "weights": torch.zeros(10_000)}, self.last)
            except NotSavedError as error:
                seen.append(str(error))
            full_from(_UNLIMITED)
            super().save_model()

    trainer = train(trainer=Own)
    assert len(seen) == 1
    assert load(trainer.last)


def test_an_error_of_what_users_code_does_while_saving_stays_what_it_is(train: Train, tmp_path: Path) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Sending(DetectionTrainer):  # type: ignore[misc]
        error: OSError

        def save_model(self) -> None:
            super().save_model()
            raise self.error

    class Mine(XPUTrainer, Sending): ...

    for error in (
        ConnectionResetError(errno.ECONNRESET, "reset by peer"),
        FileNotFoundError(errno.ENOENT, "none", str(tmp_path / "elsewhere")),
        OSError("a request failed"),
    ):
        Sending.error = error
        with pytest.raises(OSError, match=str(error.args[-1]).rpartition("/")[2]) as raised:
            train(trainer=Mine, val=False)
        assert raised.value is error


def test_a_file_that_cannot_be_saved_before_the_first_epoch_is_told_of(train: Train) -> None:
    def save(trainer: Any) -> None:
        full_from(1000)
        try:
            torch.save(torch.zeros(10_000), trainer.save_dir / "mine.pt")
        finally:
            full_from(_UNLIMITED)

    with pytest.raises(NotSavedError, match="The run can't be saved to"):
        train(callbacks={"on_pretrain_routine_end": save})


def test_weights_on_another_disk_are_whole_after_the_final_evaluation(train: Train, tmp_path: Path) -> None:
    kept: dict[str, Any] = {}

    def move(trainer: Any) -> None:
        trainer.wdir.rmdir()
        (tmp_path / "elsewhere").mkdir()
        trainer.wdir.symlink_to(tmp_path / "elsewhere")

    def fill(trainer: Any) -> None:
        kept.update(last=trainer.last, bytes=trainer.last.read_bytes())
        full_from(100_000)

    with pytest.raises(NotSavedError, match="only a part of it was written"):
        train(callbacks={"on_train_start": move, "on_fit_epoch_end": fill})
    full_from(_UNLIMITED)
    assert kept["last"].read_bytes() == kept["bytes"]


def test_a_checkpoint_that_holds_its_own_path_holds_a_plain_one(train: Train) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Noting(DetectionTrainer):  # type: ignore[misc]
        def save_model(self) -> None:
            super().save_model()
            torch.save({"ema": 1, "path": self.last}, self.wdir / "noted.pt")

    class Mine(XPUTrainer, Noting): ...

    trainer = train(trainer=Mine, val=False)
    assert type(load(trainer.wdir / "noted.pt")["path"]) is type(Path())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("epoch,loss\n1,3\n2,2\n3,1\n", "epoch,loss\n1,3\n2,2\n"),
        ("  epoch, loss\n 1, 3\n 3, 1\n", "  epoch, loss\n 1, 3\n"),
        ("date,loss\nmonday,3\n7,2\n", "date,loss\nmonday,3\n7,2\n"),
    ],
    ids=["empty", "of Ultralytics", "with blanks", "a user's own"],
)
def test_only_rows_of_later_epochs_are_dropped(tmp_path: Path, before: str, after: str) -> None:
    table = tmp_path / "results.csv"
    table.write_text(before)
    atomic_save._drop_later_rows(SimpleNamespace(csv=table, start_epoch=2))
    assert table.read_text() == after


def test_what_is_saved_elsewhere_is_pytorchs_own(train: Train, tmp_path: Path) -> None:
    def save(trainer: Any) -> None:
        full_from(1000)
        with pytest.raises(RuntimeError, match="inline_container"):
            torch.save(torch.zeros(10_000), tmp_path / "elsewhere.pt")
        full_from(_UNLIMITED)

    train(val=False, callbacks={"on_train_epoch_end": save})
    assert (tmp_path / "elsewhere.pt").stat().st_size == 1000


def test_leftovers_of_a_killed_run_are_removed_when_it_is_resumed(train: Train) -> None:
    from ultralytics import YOLO

    folder: list[Path] = []

    def leave(trainer: Any) -> None:
        if trainer.epoch == 1:
            folder.append(trainer.save_dir)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(epochs=2, callbacks={"on_train_epoch_start": leave})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [folder[0] / sub / f".last.pt.{gone.pid}-00112233.part" for sub in ("", "weights")]
    for path in left:
        path.touch()
    YOLO(folder[0] / "weights" / "last.pt").train(resume=True)
    assert not any(path.exists() for path in left)


SCRIPT = """
import sys
from ultralytics import YOLO
where = dict(data=sys.argv[1], project=sys.argv[2], name="run", exist_ok=True)
YOLO("yolo11n.yaml").train(**where, epochs=40, imgsz=32, batch=4, workers=0, plots=False, val=False, save_period=1)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_leaves_whole_files(data: TrainingData, tmp_path: Path) -> None:
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", "YOLO_VERBOSE": "false"}
    run = tmp_path / "run"
    loaded = 0
    for i in range(3):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, data("detect"), str(tmp_path)], env=environment)
        epochs = len(list((run / "weights").glob("epoch*.pt")))
        deadline = time.monotonic() + 120
        while len(list((run / "weights").glob("epoch*.pt"))) <= epochs + i and time.monotonic() < deadline:
            time.sleep(0.002 * (i + 1))
            if process.poll() is not None:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in (run / "weights").glob("*.pt"):
            load(path)
            loaded += 1
        assert len({len(row) for row in rows(run)}) == 1
    assert loaded
