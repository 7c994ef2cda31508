"""`yolo-xpu train` goes on after what a new process can get over, and after nothing else."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from yolo_xpu_trainer import DeviceLostError, NotEnoughMemoryError
from yolo_xpu_trainer.commands import train as command

from ..conftest import TrainingData

Supervise = Callable[..., subprocess.CompletedProcess[str]]

# In every child's site: what happens to the first one only, by a file that says that it has happened.
_SITE = """
import os, pathlib, signal, time
happened = pathlib.Path({marker!r})
if os.environ.get("YOLO_XPU_HEARTBEAT") and {times} > len(list(happened.parent.glob(happened.name + "*"))):
    import ultralytics.utils.callbacks.base as base
    def at_epoch(trainer, act={act!r}):
        if trainer.epoch == {epoch}:
            pathlib.Path(str(happened) + str(time.time_ns())).touch()
            exec(act)
    base.default_callbacks[{event!r}].append(at_epoch)
"""
LOSE = "from xpu_simulator import faults; faults.device_lost()"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
HANG = "time.sleep(1000)"
FAIL = "raise ValueError('a bad data set')"

pytestmark = pytest.mark.slow


@pytest.fixture
def supervise(data: TrainingData, tmp_path: Path) -> Supervise:
    """Return a function that trains for three epochs with something happening at the beginning of one."""

    def run(
        act: str, *options: str, epoch: int = 1, times: int = 1, event: str = "on_train_epoch_start", **more: object
    ) -> subprocess.CompletedProcess[str]:
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        (site / "happening.py").write_text(
            _SITE.format(marker=str(tmp_path / "happened"), act=act, epoch=epoch, times=times, event=event)
        )
        (site / "sitecustomize.py").write_text(
            "import sys\nif '-c' in sys.orig_argv and 'entrypoint' in ' '.join(sys.orig_argv): import happening\n"
        )
        given = f"data={data('detect')} model=yolo11n.yaml epochs=3 imgsz=32 batch=4 workers=0 plots=False val=False "
        given += " ".join(f"{name}={value}" for name, value in more.items())
        environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", "PYTHONPATH": str(site)}
        words = [sys.executable, "-m", "yolo_xpu_trainer", "train", "--pause", "0", *options, *given.split()]
        return subprocess.run(
            [*words, f"project={tmp_path}", "name=run"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def epochs(folder: Path) -> list[int]:
    with (folder / "run" / "results.csv").open() as file:
        return [int(row[0]) for row in list(csv.reader(file))[1:]]


@pytest.mark.parametrize(
    ("act", "seen"),
    [(LOSE, "the device or another process was lost"), (KILL, "it was ended by SIGKILL")],
    ids=["lost", "killed"],
)
def test_a_run_goes_on_from_its_last_checkpoint(supervise: Supervise, tmp_path: Path, act: str, seen: str) -> None:
    done = supervise(act)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"yolo-xpu train: {seen}; going on with {tmp_path}/run/weights/last.pt in 0 s" in done.stderr
    assert epochs(tmp_path) == [1, 2, 3]
    assert torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)["epoch"] == -1
    assert "Traceback" not in done.stderr


def test_a_run_of_which_nothing_was_saved_starts_anew(supervise: Supervise, tmp_path: Path) -> None:
    done = supervise(LOSE, epoch=0)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "starting anew, because nothing was saved yet" in done.stderr


def test_a_run_whose_batch_is_too_large_goes_on_with_half_of_it(supervise: Supervise, tmp_path: Path) -> None:
    act = (
        "from yolo_xpu_trainer import NotEnoughMemoryError as E; raise E('no room', device='', batch=4, checkpoint='')"
    )
    done = supervise(act)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"memory ran out; going on with {tmp_path}/run/weights/last.pt and batch=2" in done.stderr
    assert epochs(tmp_path) == [1, 2, 3]


def test_the_statuses_are_those_of_the_errors() -> None:
    assert (DeviceLostError.exit_status, NotEnoughMemoryError.exit_status) == (command.LOST, command.OUT_OF_MEMORY)


def test_it_ends_after_so_many_restarts(supervise: Supervise) -> None:
    done = supervise(LOSE, "--restarts", "1", times=9)
    assert done.returncode == command.LOST
    assert done.stderr.count("yolo-xpu train: the device or another process was lost") == 2
    assert "was lost in epoch 2 of 3" in done.stderr


def test_an_error_that_would_come_again_is_not_tried_again(supervise: Supervise) -> None:
    done = supervise(FAIL, times=9)
    assert done.returncode == 1
    assert "a bad data set" in done.stderr
    assert "a new process would end likewise" in done.stderr
    assert done.stderr.count("yolo-xpu train:") == 1


def test_a_run_that_makes_no_step_is_ended_and_goes_on(
    supervise: Supervise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = supervise(HANG, "--start", "25", epoch=0)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "it made no step for 2" in done.stderr


@pytest.mark.parametrize("given", [{"device": "cpu"}, {"xpu_plugins": "-heartbeat"}], ids=str)
def test_a_run_that_nobody_watches_may_take_any_time(
    supervise: Supervise, tmp_path: Path, given: dict[str, str]
) -> None:
    done = supervise("time.sleep(15)", "--start", "12", **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "yolo-xpu train:" not in done.stderr
    assert epochs(tmp_path) == [1, 2, 3]


def test_what_another_run_saved_in_the_folder_is_not_gone_on_from(supervise: Supervise, tmp_path: Path) -> None:
    weights = tmp_path / "run" / "weights"
    weights.mkdir(parents=True)
    (weights / "last.pt").write_bytes(b"another run's")
    done = supervise(LOSE, epoch=0, exist_ok=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "starting anew, because nothing was saved yet" in done.stderr


def test_a_run_whose_epochs_are_all_trained_is_not_started_again(supervise: Supervise, tmp_path: Path) -> None:
    later = f"lambda validator: validator.training or exec({LOSE!r})"
    done = supervise(f"trainer.validator.add_callback('on_val_start', {later})", event="on_train_epoch_end", epoch=2)
    assert done.returncode == command.LOST, done.stderr[-3000:]
    assert f"every epoch is trained, only the evaluation of {tmp_path}/run/weights/best.pt is missing" in done.stderr
    assert epochs(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_it_ends_the_child_as_well(data: TrainingData, tmp_path: Path, number: signal.Signals) -> None:
    words = f"data={data('detect')} model=yolo11n.yaml epochs=500 imgsz=32 batch=4 workers=0 plots=False val=False"
    process = subprocess.Popen(
        [sys.executable, "-m", "yolo_xpu_trainer", "train", *words.split(), f"project={tmp_path}", "name=run"],
        env={**os.environ, "XPU_SIMULATOR": "arc-b580"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # which nohup would have it ignore
    )
    results = tmp_path / "run" / "results.csv"
    deadline = time.monotonic() + 120
    while not results.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) != 0
    size = results.stat().st_size
    time.sleep(2)
    assert results.stat().st_size == size


@pytest.mark.parametrize(
    ("status", "hung", "worth", "text"),
    [
        (75, 0.0, True, "the device or another process was lost"),
        (-9, 0.0, True, "it was ended by SIGKILL"),
        (139, 0.0, True, "it was ended by SIGSEGV"),
        (-9, 200.0, True, "it made no step for 200 s"),
        (1, 0.0, False, "it ended with exit status 1"),
        (2, 0.0, False, "it ended with exit status 2"),
        (71, 0.0, False, "memory ran out"),
        (-2, 0.0, False, "it was ended by SIGINT"),
        (0xC0000005, 0.0, True, "it ended with exit status 3221225477"),
    ],
)
def test_only_what_a_new_process_can_get_over_is_worth_one(status: int, hung: float, worth: bool, text: str) -> None:
    end = command._End(status, hung)
    assert end.is_worth_another is worth
    assert str(end) == text


@pytest.mark.parametrize(
    ("ends", "status"), [([75, 69, 69, 0], 0), ([69], 69), ([75, 1], 1)], ids=["back", "never there", "a failure"]
)
def test_a_device_that_was_lost_may_take_a_while_to_come_back(
    ends: list[int], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = tmp_path / "last.pt"
    last.touch()
    given: list[list[str]] = []

    def train(arguments: list[str], beat: Path, start: float) -> command._End:
        beat.write_text(json.dumps({"checkpoint": str(last), "device": "xpu:1"}))
        given.append(arguments)
        return command._End(ends[len(given) - 1])

    monkeypatch.setattr(command, "_train", train)
    assert command.run(Namespace(arguments=["epochs=3"], restarts=5, pause=0, start=9)) == status
    assert given == [["epochs=3"], *[["resume=True", f"model={last}", "device=xpu:1"]] * (len(ends) - 1)]


def test_processes_of_a_child_in_sessions_of_their_own_are_ended_with_it() -> None:
    sleep = "import subprocess, sys, time; {}; time.sleep(100)"
    inner = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True)"
    child = subprocess.Popen([sys.executable, "-c", sleep.format(inner)], start_new_session=True)
    deadline = time.monotonic() + 30
    while not (own := command._descendants(child.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert command._end(child) == -signal.SIGKILL
    _, alive = psutil.wait_procs(own, timeout=10)
    assert len(own) == 1
    assert not alive
