"""`xpu_exact_resume`: a run that was interrupted and resumed equals one that wasn't, bit for bit."""

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from ultralytics import YOLO

from xpu_simulator import faults
from yolo_xpu_trainer import DeviceLostError, NotSavedError
from yolo_xpu_trainer.run import CHECKPOINT_KEY
from yolo_xpu_trainer.trainers import XPUDetectionTrainer

from ..conftest import Train, TrainingData
from ..datasets import WRITERS

pytestmark = pytest.mark.slow

ARGUMENTS: dict[str, Any] = {
    "epochs": 4, "imgsz": 32, "batch": 4, "nbs": 12, "warmup_epochs": 1, "close_mosaic": 1, "device": "xpu:0",
    "optimizer": "AdamW", "amp": "fp32", "xpu_exact_resume": True,
}  # fmt: skip


class InterruptionError(Exception):
    """Ends a run at some batch, as a lost device would."""


def at(epoch: int, batch: int) -> Any:
    """Return a callback that ends a run once, at the start of a batch."""
    seen: list[tuple[int, int]] = []

    def look(trainer: Any) -> None:
        seen.append((trainer.epoch, 0))
        if sum(e == epoch for e, _ in seen) == batch + 1:
            seen.append((epoch, 0))
            raise InterruptionError

    return look


def interrupted(train: Train, tmp_path: Path, moments: list[tuple[int, int]], **arguments: Any) -> Any:
    """Train with interruptions, and go on after each; return the last trainer."""
    with pytest.raises(InterruptionError):
        train(callbacks={"on_train_batch_start": at(*moments[0])}, name="interrupted", **arguments)
    for moment in [*moments[1:], None]:
        model = YOLO(tmp_path / "interrupted" / "weights" / "last.pt")
        if moment is None:
            model.train(resume=True, trainer=XPUDetectionTrainer)
            return model.trainer
        model.add_callback("on_train_batch_start", at(*moment))
        with pytest.raises(InterruptionError):
            model.train(resume=True, trainer=XPUDetectionTrainer)
    raise AssertionError


def differences(one: Any, other: Any) -> list[str]:
    """Return where two trainers' weights, averages, states and tables differ in a bit."""
    pairs = {
        "model": (one.model.state_dict(), other.model.state_dict()),
        "ema": (one.ema.ema.state_dict(), other.ema.ema.state_dict()),
    }
    for i, state in one.optimizer.state_dict()["state"].items():
        pairs[f"optimizer {i}"] = state, other.optimizer.state_dict()["state"][i]
    found = [
        f"{what}: {name}"
        for what, (mine, theirs) in pairs.items()
        for name, value in mine.items()
        if isinstance(value, torch.Tensor) and not torch.equal(value.cpu(), theirs[name].cpu())
    ]
    rows = [[{k: v for k, v in r.items() if k.strip() != "time"} for r in table(t)] for t in (one, other)]
    return found + [f"row {i}: {a} {b}" for i, (a, b) in enumerate(zip(*rows, strict=True)) if a != b]


def table(trainer: Any) -> list[dict[str, str]]:
    """Return the rows of a run's results.csv."""
    with Path(trainer.csv).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write images for seven batches of four, so that three of them are left over from a step of three."""
    return str(WRITERS["detect"](tmp_path_factory.mktemp("images"), images=28))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"workers": 2, "optimizer": "SGD", "multi_scale": 0.5},
        {"amp": "bf16", "model": "yolo26n.yaml", "optimizer": "auto"},
        {"amp": "fp16", "nbs": 4, "mixup": 0.5},
    ],
    ids=str,
)
def test_a_run_that_was_interrupted_equals_one_that_was_not(
    train: Train, images: str, tmp_path: Path, given: dict[str, Any]
) -> None:
    arguments = {**ARGUMENTS, "data": images, **given}
    undisturbed = train(name="undisturbed", **arguments)
    resumed = interrupted(train, tmp_path, [(1, 0), (2, 5), (3, 1)], **arguments)
    assert differences(undisturbed, resumed) == []


def test_without_it_a_resumed_run_differs_as_ultralytics_own_does(train: Train, images: str, tmp_path: Path) -> None:
    arguments = {**ARGUMENTS, "data": images, "xpu_exact_resume": False}
    undisturbed = train(name="undisturbed", **arguments)
    assert differences(undisturbed, interrupted(train, tmp_path, [(2, 5)], **arguments))


def test_a_finished_runs_checkpoints_have_nothing_of_it(train: Train) -> None:
    sizes: list[int] = []
    kept = train(
        callbacks={"on_model_save": lambda trainer: sizes.append(trainer.last.stat().st_size)},
        **{**ARGUMENTS, "epochs": 1},
    )
    for path in (kept.last, kept.best):
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        assert set(checkpoint[CHECKPOINT_KEY]) == {"device", "precision", "options"}
        assert path.stat().st_size < sizes[0] / 5


def test_a_checkpoint_without_it_is_resumed_with_a_word(
    train: Train, data: TrainingData, tmp_path: Path, log: list[Any]
) -> None:
    with pytest.raises(InterruptionError):
        train(callbacks={"on_train_batch_start": at(1, 0)}, name="run", epochs=2, device="xpu:0")
    model = YOLO(tmp_path / "run" / "weights" / "last.pt")
    model.train(resume=True, trainer=XPUDetectionTrainer, xpu_exact_resume=True)
    said = [record.getMessage() for record in log if "not exactly" in record.getMessage()]
    assert len(said) == 1
    assert "xpu_exact_resume=True" in said[0]


def test_a_run_that_three_faults_end_equals_plain_ultralytics_stopped_and_resumed_there(
    train: Train, images: str, tmp_path: Path
) -> None:
    arguments = {"data": images, "epochs": 5, "imgsz": 32, "batch": 4, "nbs": 4, "amp": False, "close_mosaic": 1}
    exact = {"xpu_channels_last": False, "xpu_fused_optimizer": False}

    def plain(stop: Callable[[Any], None], checkpoint: Path | None) -> Any:
        given = {"model": YOLO(checkpoint), "resume": True} if checkpoint else {"model": "yolo11n.yaml"}
        return train(plain=True, name="plain", callbacks={"on_train_start": stop}, **arguments, device="cpu", **given)

    def ours(fail: Callable[[Any], None], checkpoint: Path | None) -> Any:
        given = {"model": YOLO(checkpoint), "resume": True} if checkpoint else {"model": "yolo11n.yaml"}
        device = "xpu:0"
        return train(name="ours", callbacks={"on_train_start": fail}, **arguments, device=device, **exact, **given)

    def in_batch(epoch: int, act: Callable[[], None]) -> Callable[[Any], None]:
        def install(trainer: Any) -> None:
            batches: list[int] = []

            def look(trainer: Any) -> None:
                batches.append(trainer.epoch)
                if batches.count(epoch) == 3:
                    act()

            trainer.add_callback("on_train_batch_start", look)

        return install

    def in_save(epoch: int, act: Callable[[], None]) -> Callable[[Any], None]:
        def install(trainer: Any) -> None:
            save = trainer.save_model

            def saving() -> Any:
                if trainer.epoch == epoch:
                    act()
                return save()

            trainer.save_model = saving

        return install

    def stop() -> None:
        raise InterruptionError

    def fill_the_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    last = {name: tmp_path / name / "weights" / "last.pt" for name in ("plain", "ours")}
    for where, epoch, fault, error in (
        (in_batch, 1, faults.device_lost, DeviceLostError),
        (in_save, 2, fill_the_disk, NotSavedError),
        (in_batch, 3, stop, InterruptionError),
    ):
        with pytest.raises(InterruptionError):
            plain(where(epoch, stop), last["plain"] if last["plain"].exists() else None)
        with pytest.raises(error):
            ours(where(epoch, fault), last["ours"] if last["ours"].exists() else None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        faults.clear()
    expected, seen = plain(lambda trainer: None, last["plain"]), ours(lambda trainer: None, last["ours"])
    assert [int(row["epoch"]) for row in table(seen)] == [1, 2, 3, 4, 5]
    theirs, own = expected.model.state_dict(), seen.model.state_dict()
    assert [name for name, value in own.items() if not torch.equal(value.cpu(), theirs[name])] == []


ON_TWO_XPUS = """
import shutil, sys
from pathlib import Path
import torch
from torch.utils import _pytree as pytree
from ultralytics import YOLO

if __name__ == "__main__":  # the workers import this file, too
    data, project = sys.argv[1], Path(sys.argv[2])
    weights = project / "run" / "weights"
    YOLO("yolo11n.yaml").train(
        data=data, project=str(project), name="run", epochs=3, save_period=1, imgsz=32, batch=4, nbs=16, workers=0,
        plots=False, device="xpu:0,1", xpu_exact_resume=True,
    )
    shutil.copy(weights / "epoch2.pt", project / "undisturbed.pt")
    shutil.copy(weights / "epoch0.pt", weights / "last.pt")  # as if both had been killed after the first epoch
    YOLO(weights / "last.pt").train(resume=True)
"""


def test_two_gpus_go_on_exactly(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(ON_TWO_XPUS)
    done = subprocess.run(
        [sys.executable, str(script), data("detect"), str(tmp_path)],
        env={**os.environ, "XPU_SIMULATOR": "max-1550"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = (tmp_path / "undisturbed.pt", tmp_path / "run" / "weights" / "epoch2.pt")
    states = [torch.load(file, weights_only=False)[CHECKPOINT_KEY]["exact"] for file in files]
    assert [state["waiting"] for state in states] == [3, 3]
    undisturbed, resumed = ([x for x in pytree.tree_leaves(s) if isinstance(x, torch.Tensor)] for s in states)
    assert len(undisturbed) == len(resumed) > 1000
    assert [i for i, (a, b) in enumerate(zip(undisturbed, resumed, strict=True)) if not torch.equal(a, b)] == []
