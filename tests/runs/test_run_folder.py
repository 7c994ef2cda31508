"""Two runs never write into the same folder at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ultralytics.utils import files

from yolo_xpu_trainer import RunFolderInUseError
from yolo_xpu_trainer.policies import run_folder

from ..conftest import Train, TrainingData


@pytest.fixture
def elsewhere() -> Any:
    """Another process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def note(folder: Path, process: int, started: float | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    said = {"process": process, "started": run_folder._started(process) if started is None else started}
    (folder / run_folder._NAME).write_text(json.dumps(said))


def test_a_folder_that_another_process_trains_in_is_refused_and_stays_as_it_is(
    train: Train, tmp_path: Path, elsewhere: Any
) -> None:
    folder = tmp_path / "same"
    note(folder, elsewhere.pid)
    with pytest.raises(RunFolderInUseError) as refused:
        train(name="same", exist_ok=True)
    assert f"Process {elsewhere.pid} trains in {folder}" in str(refused.value)
    assert os.listdir(folder) == [run_folder._NAME]
    assert refused.value.process == elsewhere.pid


def test_a_run_takes_the_folder_that_is_free_and_makes_no_other(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Ultralytics makes a folder when it is asked for one, as 8.4.0 does."""
    original = files.increment_path

    def makes_it(path: Any, exist_ok: bool = False, sep: str = "-", mkdir: bool = True) -> Any:
        return original(path, exist_ok, sep, mkdir)

    monkeypatch.setattr(files, "increment_path", makes_it)
    trainer = train(name="new", val=False)
    assert trainer.save_dir.name == "new"
    assert [folder.name for folder in trainer.save_dir.parent.glob("new*")] == ["new"]


def test_without_exist_ok_ultralytics_numbers_the_next_one(train: Train, tmp_path: Path, elsewhere: Any) -> None:
    note(tmp_path / "same", elsewhere.pid)
    assert train(name="same", val=False).save_dir.name == "same-2"


@pytest.mark.parametrize("kind", ["gone", "another with its number", "broken"])
def test_what_a_killed_process_left_hinders_nobody(train: Train, tmp_path: Path, elsewhere: Any, kind: str) -> None:
    folder = tmp_path / "same"
    if kind == "gone":
        elsewhere.kill()
        elsewhere.wait()
        note(folder, elsewhere.pid, started=1.0)
    elif kind == "another with its number":
        note(folder, elsewhere.pid, started=1.0)
    else:
        folder.mkdir()
        (folder / run_folder._NAME).write_text("{")
    assert train(name="same", exist_ok=True, val=False).save_dir == folder
    assert not (folder / run_folder._NAME).exists()


def test_a_run_says_whose_the_folder_is_as_long_as_it_lasts(train: Train) -> None:
    seen: list[int] = []

    def look(trainer: Any) -> None:
        seen.append(run_folder._noted(trainer.save_dir / run_folder._NAME)[0])

    trainer = train(val=False, callbacks={"on_train_start": look})
    assert seen == [os.getpid()]
    assert not (trainer.save_dir / run_folder._NAME).exists()


TRAINING = """
import json, sys
from ultralytics import YOLO
losses = []
model = YOLO("yolo11n.yaml")
model.add_callback("on_train_batch_end", lambda trainer: losses.append(trainer.loss.item()))
options = json.loads(sys.argv[1])
small = dict(epochs=3, imgsz=32, batch=4, workers=0, plots=False)
model.train(data=sys.argv[2], project=sys.argv[3], name="run", device="xpu:0", **small, **options)
print("SAID", json.dumps([str(model.trainer.save_dir), losses, model.trainer.xpu.options.decided()]))
"""


@pytest.mark.slow
def test_two_runs_at_once_on_one_device_do_what_each_does_alone(data: TrainingData, tmp_path: Path) -> None:
    given = [{"amp": "fp32", "xpu_fused_optimizer": False}, {"amp": "bf16", "xpu_channels_last": False}]
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580"}

    def begin(options: dict[str, Any], project: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", TRAINING, json.dumps(options), data("detect"), str(project)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def said(process: subprocess.Popen[str]) -> Any:
        lines = process.communicate()[0].splitlines()
        (line,) = [line for line in lines if line.startswith("SAID")]
        return json.loads(line.removeprefix("SAID"))

    alone = [said(begin(options, tmp_path / f"alone{i}")) for i, options in enumerate(given)]
    first = begin(given[0], tmp_path / "together")
    while not (tmp_path / "together" / "run" / "args.yaml").exists():
        time.sleep(0.05)
    both = [said(second) for second in (begin(given[1], tmp_path / "together"), first)][::-1]
    assert [folder.name for folder in sorted((tmp_path / "together").iterdir())] == ["run", "run-2"]
    assert both[0][0] != both[1][0]
    for (_, losses, options), (_, expected, as_alone) in zip(both, alone, strict=True):
        assert losses == expected
        assert options == as_alone
