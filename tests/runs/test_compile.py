"""`compile=True` on an XPU: whether it works is known before a run begins, and if not, why, and what mends it."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils import torch_utils

from yolo_xpu_trainer.errors import Problem
from yolo_xpu_trainer.policies import compile as compiling
from yolo_xpu_trainer.policies.compile import obstacles, problem, trial, xpu_around_run
from yolo_xpu_trainer.run import Stash

from ..conftest import Train, TrainingData

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    not hasattr(torch_utils, "attempt_compile"), reason="before 8.3.200 or so Ultralytics doesn't compile"
)


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    problem.cache_clear()
    yield
    problem.cache_clear()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note in which mode Ultralytics would have compiled a model, had it worked here."""
    modes: list[str] = []
    monkeypatch.setattr(compiling, "problem", lambda index: None)
    monkeypatch.setattr(torch, "compile", lambda model, mode, backend: modes.append(mode) or model)
    return modes


def said(log: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in log if "torch.compile" in record.getMessage()]


# A run


def test_a_run_that_can_not_compile_says_why_once_and_goes_on(train: Train, log: list[logging.LogRecord]) -> None:
    trainer = train(compile="max-autotune-no-cudagraphs")
    (warning,) = said(log)
    assert "compile='max-autotune-no-cudagraphs' is ignored" in warning
    assert "made for other devices" in warning  # the Triton that is installed here
    assert "--index-url https://download.pytorch.org/whl/xpu" in warning
    assert trainer.last.exists()
    assert trainer.args.compile is False
    assert torch.load(trainer.last, weights_only=False)["train_args"]["compile"] is False


def test_a_run_that_can_compile_is_compiled_by_ultralytics(
    train: Train, compiled: list[str], log: list[logging.LogRecord]
) -> None:
    trainer = train(compile=True, val=False)
    assert compiled == ["default"]
    assert trainer.args.compile is True
    assert not [text for text in said(log) if "XPU" in text]


def test_nothing_is_tried_where_nobody_asked(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "problem", lambda index: pytest.fail("it was tried"))
    train(val=False)
    torch_utils.attempt_compile(torch.nn.Identity(), device=CPU, mode=False)


def test_the_workers_of_a_ddp_run_leave_the_argument_to_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    def left(is_worker: bool) -> Any:
        args = SimpleNamespace(compile=True)
        trainer = SimpleNamespace(
            args=args, xpu=SimpleNamespace(indices=(0, 1), is_worker=is_worker, stash=Stash(), group=None)
        )
        with xpu_around_run(trainer=trainer):
            return args.compile

    monkeypatch.setattr(compiling, "problem", lambda index: Problem("no luck", "Wait.") if index else None)
    assert left(is_worker=False) is False  # one of the two devices can't
    assert left(is_worker=True) is True


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_of_a_launcher_go_without_where_one_of_them_can_not(
    monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord], rank: int
) -> None:
    failed = (1, Problem("no luck", "Wait."))
    group = SimpleNamespace(gather=lambda found: [None, failed])
    args = SimpleNamespace(compile=True)
    run = SimpleNamespace(indices=(rank,), is_worker=rank > 0, stash=Stash(), group=group)
    monkeypatch.setattr(compiling, "problem", lambda index: failed[1] if index else None)
    with xpu_around_run(trainer=SimpleNamespace(args=args, xpu=run)):
        assert args.compile is False
    assert len(said(log)) == (rank == 0)


@pytest.mark.parametrize("mode", ["val", "predict"])
def test_validating_and_predicting_go_on_without(
    xpu: torch.device, data: TrainingData, tmp_path: Path, log: list[logging.LogRecord], mode: str
) -> None:
    model = YOLO("yolo11n.yaml")
    shared = {"compile": True, "imgsz": 32, "device": "xpu:0", "project": str(tmp_path), "verbose": False}
    if mode == "val":
        model.val(data=data("detect"), plots=False, workers=0, **shared)
    else:
        import numpy as np

        model.predict(np.zeros((32, 32, 3), dtype=np.uint8), **shared)
    assert [text for text in said(log) if "is not compiled" in text]


def test_a_model_that_can_be_compiled_is_in_the_mode_asked_for(xpu: torch.device, compiled: list[str]) -> None:
    model = torch.nn.Identity()
    torch_utils.attempt_compile(model, device=xpu, mode="max-autotune-no-cudagraphs")
    torch_utils.attempt_compile(model, device=xpu)
    assert compiled[0] == "max-autotune-no-cudagraphs"
    assert len(compiled) == 2


def test_the_mode_that_only_adds_cuda_graphs_is_the_default_and_said_once(
    xpu: torch.device, compiled: list[str], log: list[logging.LogRecord]
) -> None:
    compiling._say_that_graphs_are_cudas.cache_clear()
    for _ in range(2):
        torch_utils.attempt_compile(torch.nn.Identity(), device=xpu, mode="reduce-overhead")
    assert compiled == ["default", "default"]
    assert len([r for r in log if "'reduce-overhead' means 'default' here" in r.getMessage()]) == 1


# The trial


def test_a_trial_that_works_finds_nothing() -> None:
    assert trial(CPU) is None  # compiled with g++, as the simulated device is


def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = trial(CPU)
    assert found is not None
    assert "No working C++ compiler found" in found.seen
    assert "sudo apt install g++" in found.remedy


def test_a_trial_on_the_simulated_device_fails_cleanly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XPU_SIMULATOR", "arc-b580")
    found = trial(torch.device("xpu", 0))
    assert found is not None
    assert "compiling a tiny function failed (" in found.seen  # and Inductor's own words, another in each release


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("Failed to find C compiler. Please specify via CC environment variable.", obstacles._COMPILER),
        ("Compiler: cl is not found.", obstacles._COMPILER),
        ("main.cpp:23: fatal error: level_zero/ze_api.h: No such file or directory", "libze-dev"),
        ("driver.c:5:10: fatal error: Python.h: No such file or directory", "python3-dev"),
        ("sycl headers not found, please install `icpx` compiler, or …", "whl/xpu"),
        ("Triton Error [ZE]: 0x78000011", "TORCHDYNAMO_VERBOSE=1"),
    ],
)
def test_what_users_have_met_is_mended_by(text: str, remedy: str) -> None:
    found = obstacles._explained(f"RuntimeError: backend='inductor' raised:\n{text}\n\nand much more")
    assert f"(RuntimeError: {text})" in found.seen
    assert remedy in found.remedy


def in_the_child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the process of a trial run something else first."""
    monkeypatch.setattr(obstacles, "_CHILD", f"{code}\n{obstacles._CHILD}")


def test_a_compiler_that_gives_wrong_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_child(monkeypatch, "import torch; torch.compile = lambda function, backend: lambda x: function(x) * 2")
    found = trial(CPU)
    assert found is not None
    assert "wrong numbers" in found.seen


@pytest.mark.skipif(sys.platform == "win32", reason="signals are needed")
def test_a_compiler_that_crashes_does_not_take_the_run_along(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytorch#159974: a segmentation fault in Triton's launcher
    crash = "import os, signal; print('launching', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    in_the_child(monkeypatch, crash)
    found = trial(CPU)
    assert found is not None
    assert "SIGSEGV" in found.seen
    assert "pip uninstall -y triton" in found.remedy
    assert "launching" in found.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="`sleep` is needed")
def test_a_compiler_that_hangs_is_ended_with_what_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    hang = f"""import os, subprocess, time
started = subprocess.Popen(["sleep", "60"])
open({str(ids)!r}, "w").write(f"{{os.getpid()}} {{started.pid}}")
time.sleep(60)"""
    in_the_child(monkeypatch, hang)
    began = time.monotonic()
    found = trial(CPU, seconds=3)
    assert time.monotonic() - began < 30
    assert found is not None
    assert "longer than 3 seconds" in found.seen
    for one in ids.read_text().split():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(one))
            while process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() - began < 30
                time.sleep(0.05)


def test_a_missing_triton_is_found_without_a_trial(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(obstacles, "trial", lambda device: pytest.fail("it was tried"))
    found = problem(0)
    assert found is not None
    assert "Triton can't be imported" in found.seen


def test_before_2_7_nothing_is_compiled_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstacles, "os", SimpleNamespace(name="nt"))
    for version, can in (("2.6.0+xpu", False), ("2.7.0+xpu", True), ("2.10.1+xpu", True)):
        monkeypatch.setattr(torch, "__version__", version)
        assert (obstacles._old_on_windows() is None) is can
