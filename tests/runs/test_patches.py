"""What a run changes in Ultralytics it puts back, whatever happens; where nothing is needed, nothing is changed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import ultralytics.engine.trainer
from ultralytics import YOLO
from ultralytics.utils import torch_utils

import xpu_simulator
from yolo_xpu_trainer import XPUDetectionTrainer, devices, hookimpl, plugins
from yolo_xpu_trainer.patches import Patch, applied
from yolo_xpu_trainer.run import Precision, Run

from ..conftest import TrainingData
from ..options import options

Names = dict[tuple[str, str], object]
Train = Callable[..., Any]

_MISSING = object()


def replaceable(value: object) -> bool:
    return callable(value) or isinstance(value, (ModuleType, property, classmethod, staticmethod))


def snapshot() -> Names:
    """Return every function, class and module that a name in Ultralytics, in its classes or in torch stands for."""
    names: Names = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != "ultralytics" and module_name not in ("torch", "torch.xpu", "torch.amp"):
            continue
        for name, value in list(vars(module).items()):
            if replaceable(value):
                names[module_name, name] = value
            if isinstance(value, type) and value.__module__ == module_name:
                for attribute, member in list(vars(value).items()):
                    if replaceable(member):
                        names[f"{module_name}:{name}", attribute] = member
    return names


def changed(before: Names, after: Names) -> set[tuple[str, str]]:
    return {name for name, value in before.items() if after.get(name, _MISSING) is not value}


def train_once(data: str, project: Path, callbacks: dict[str, Callable[[Any], None]], **more: Any) -> Any:
    model = YOLO("yolo11n.yaml")
    for event, callback in callbacks.items():
        model.add_callback(event, callback)
    given = {"data": data, "epochs": 1, "imgsz": 32, "plots": False, "project": str(project)}
    model.train(trainer=XPUDetectionTrainer, **given, **more)
    return model.trainer


@pytest.fixture(scope="module")
def everything_is_imported(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let Ultralytics import what it imports on first use."""
    with xpu_simulator.use_profile("arc-b580"):
        train_once(data("detect"), tmp_path_factory.mktemp("first"), {})


@pytest.fixture
def train(everything_is_imported: None, xpu: torch.device, data: TrainingData, tmp_path: Path) -> Train:
    """Return a function that trains for an epoch; it takes what to call at which event."""

    def run(callbacks: dict[str, Callable[[Any], None]] | None = None, **more: Any) -> Any:
        return train_once(data("detect"), tmp_path, callbacks or {}, **more)

    return run


EVENTS = ("on_train_start", "on_train_batch_end", "on_val_start", "on_model_save", "on_fit_epoch_end", "on_train_end")


# A run


@pytest.mark.parametrize("amp", ["bf16", "fp16", "fp32"])
def test_after_a_run_every_name_stands_for_what_it_stood_for(train: Train, amp: str) -> None:
    before = snapshot()
    during: set[tuple[str, str]] = set()
    train({event: lambda _: during.update(changed(before, snapshot())) for event in EVENTS}, amp=amp)
    assert ("ultralytics.engine.trainer", "check_amp") in during
    if amp == "bf16":
        assert ("ultralytics.engine.trainer", "autocast") in during
        assert ("ultralytics.utils.loss:v8DetectionLoss", "__call__") in during
    assert changed(before, snapshot()) == set()


@pytest.mark.xpu_profile("core-ultra-155h")
def test_what_autobatch_is_shown_is_put_back(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils import torch_utils

    before = snapshot()
    during: set[tuple[str, str]] = set()
    time_sync = torch_utils.time_sync

    def look(*args: Any) -> float:
        during.update(changed(before, snapshot()))
        return float(time_sync(*args))

    with monkeypatch.context() as patched:
        patched.setattr(torch_utils, "time_sync", look)
        train({}, batch=-1)
    assert {("ultralytics.utils.autobatch", name) for name in ("get_torch_device_backend", "profile_ops")} <= during
    assert changed(before, snapshot()) == set()


def test_a_run_on_the_cpu_changes_nothing(train: Train) -> None:
    before = snapshot()
    during: set[tuple[str, str]] = set()
    train({event: lambda _: during.update(changed(before, snapshot())) for event in EVENTS}, device="cpu")
    assert during == set()


def test_an_fp32_run_keeps_upstreams_own_code_but_for_the_amp_check_and_syncs(train: Train) -> None:
    before = snapshot()
    during: set[tuple[str, str]] = set()
    train({event: lambda _: during.update(changed(before, snapshot())) for event in EVENTS}, amp=False)
    names = {name for _, name in during}
    policies = {"check_amp", "torch", "make_anchors", "preprocess", "forward", "autobatch", "tloss", "run_callbacks"}
    assert names <= {*policies, "subprocess", "preprocess_batch", "build_optimizer", "enumerate", "_clear_memory"}


def test_making_a_trainer_changes_nothing(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    before = snapshot()
    trainer = XPUDetectionTrainer(overrides={"model": "yolo11n.yaml", "data": data("detect"), "project": str(tmp_path)})
    assert trainer.xpu is not None
    assert changed(before, snapshot()) == set()


class FaultError(Exception):
    """Ends a run in the middle."""


def fail(trainer: Any) -> None:
    raise FaultError


@pytest.mark.parametrize(
    "event",
    [
        "on_pretrain_routine_start",
        "on_pretrain_routine_end",
        "on_train_batch_end",
        "on_val_start",
        "on_val_end",
        "on_model_save",
        "on_fit_epoch_end",
        "on_train_end",
        "teardown",
    ],
)
def test_after_a_run_that_failed_every_name_stands_for_what_it_stood_for(train: Train, event: str) -> None:
    before = snapshot()
    with pytest.raises(FaultError):
        train({event: fail})
    assert changed(before, snapshot()) == set()


def test_a_failing_save_leaves_no_change_behind(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise FaultError

    monkeypatch.setattr(torch, "save", full)
    before = snapshot()
    with pytest.raises(FaultError):
        train()
    assert changed(before, snapshot()) == set()
    assert torch.save is full


def test_a_failing_final_validation_leaves_no_change_behind(train: Train) -> None:
    def fail_at_the_end(trainer: Any) -> None:
        if not trainer.validator.training:  # which it is after each epoch
            raise FaultError

    before = snapshot()
    with pytest.raises(FaultError):
        train({"on_fit_epoch_end": fail_at_the_end})
    assert changed(before, snapshot()) == set()


def test_a_module_first_imported_during_a_run_keeps_nothing_of_it(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = types.ModuleType("ultralytics.late")

    def import_it(trainer: Any) -> None:
        exec("from ultralytics.utils.torch_utils import autocast", vars(late))
        monkeypatch.setitem(sys.modules, "ultralytics.late", late)

    original = torch_utils.autocast
    train({"on_train_start": import_it}, amp="bf16")
    assert late.autocast is original


def test_a_first_run_in_a_process_leaves_nothing_of_ours_in_ultralytics(
    xpu: torch.device, data: TrainingData, tmp_path: Path
) -> None:
    code = f"""
import sys
import torch
from ultralytics import YOLO
from yolo_xpu_trainer import XPUDetectionTrainer
from yolo_xpu_trainer.activation import process_patches

given = dict(data={data("detect")!r}, epochs=1, imgsz=32, plots=False, project={str(tmp_path)!r}, amp="bf16")
YOLO("yolo11n.yaml").train(trainer=XPUDetectionTrainer, **given)
process_patches().restore()
for name, module in list(sys.modules.items()):
    for key, value in list(vars(module).items()) if name.partition(".")[0] == "ultralytics" else []:
        home = getattr(value, "__globals__", {{}}).get("__name__", str(getattr(value, "__module__", "")))
        assert not home.startswith("yolo_xpu_trainer"), (name, key, value)
print("clean")
"""
    environment = {**os.environ, **({"XPU_SIMULATOR": "arc-b580"} if xpu_simulator.is_active() else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip().endswith("clean"), done.stderr


def test_two_runs_in_a_row_each_get_what_they_need(train: Train) -> None:
    dtypes = []

    def look(trainer: Any) -> None:
        with ultralytics.engine.trainer.autocast(True, device="xpu"):
            dtypes.append(torch.get_autocast_dtype("xpu"))

    for amp in ("bf16", "fp16", "bf16"):
        train({"on_train_start": look}, amp=amp, val=False)
    assert dtypes == [torch.bfloat16, torch.float16, torch.bfloat16]


# A seam that moved


def changing(target: str, **more: Any) -> Patch:
    given: dict[str, Any] = {
        "why": "the moon would fall",
        "source": "nowhere",
        "replacement": lambda run, original: lambda *args, **kwargs: "replaced",
        **more,
    }
    return Patch(target=target, **given)


@pytest.fixture
def run(xpu: torch.device) -> Run:
    return Run(devices.info(0), (0,), Precision("bf16", "a test says so"), options())


MOVED = [
    "ultralytics.no_such_module:function",
    "ultralytics.utils.torch_utils:no_such_function",
    "ultralytics.engine.trainer:BaseTrainer.no_such_method",
    "ultralytics.engine.trainer:NoSuchTrainer.train",
]


@pytest.mark.parametrize("target", MOVED)
def test_a_seam_that_moved_is_one_warning_and_left_alone(run: Run, target: str, log: list[logging.LogRecord]) -> None:
    before = snapshot()
    for _ in range(3):
        with applied([changing(target)], run) as active:
            assert active == []
            assert changed(before, snapshot()) == set()
    (warning,) = [r.getMessage() for r in log]
    assert target in warning
    assert "the moon would fall" in warning


def test_a_seam_that_only_some_versions_have_is_no_cause_for_a_warning(run: Run, log: list[logging.LogRecord]) -> None:
    with applied([changing(target, optional=True) for target in MOVED], run) as active:
        assert active == []
    assert log == []


class Plugin:
    """Wants changes that this Ultralytics has no place for, and one that it has."""

    def __init__(self, patches: list[Patch]) -> None:
        self.patches = patches

    @hookimpl
    def xpu_patches(self) -> list[Patch]:
        return self.patches


@contextmanager
def registered(plugin: object) -> Iterator[None]:
    plugins.manager().register(plugin)
    try:
        yield
    finally:
        plugins.manager().unregister(plugin)


def test_a_run_goes_on_where_seams_moved(train: Train, log: list[logging.LogRecord]) -> None:
    there = changing(
        "ultralytics.utils.torch_utils:one_cycle", replacement=lambda run, original: lambda *a: original(*a)
    )
    acted = []

    def look(trainer: Any) -> None:
        acted.append(torch_utils.one_cycle is not original)

    original = torch_utils.one_cycle
    with registered(Plugin([*map(changing, MOVED), there])):
        trainer = train({"on_train_start": look})
        train({"on_train_start": look})
    assert trainer.last.exists()
    assert acted == [True, True]
    assert torch_utils.one_cycle is original
    warned = [r.getMessage() for r in log if "was not found in Ultralytics" in r.getMessage()]
    assert len(warned) == len(MOVED)


def test_no_seam_of_ours_has_moved_in_the_version_installed(train: Train, log: list[logging.LogRecord]) -> None:
    train()
    assert not [r.getMessage() for r in log if "was not found in Ultralytics" in r.getMessage()]


# Rows by themselves


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    """Two modules of Ultralytics that share a function, and one of somebody else's that imported it too."""
    first, second, other = (types.ModuleType(n) for n in ("ultralytics.first", "ultralytics.second", "other_first"))

    def shared() -> str:
        return "original"

    class Parent:
        def method(self) -> str:
            return "original"

    class Child(Parent):
        pass

    for module in (first, second, other):
        vars(module).update(shared=shared, Parent=Parent, Child=Child)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return first, second, other


def test_a_function_is_replaced_wherever_ultralytics_imported_it(run: Run, modules: tuple[Any, Any, Any]) -> None:
    first, second, other = modules
    with applied([changing("ultralytics.first:shared")], run) as active:
        assert len(active) == 1
        assert (first.shared(), second.shared(), other.shared()) == ("replaced", "replaced", "original")
    assert first.shared() == second.shared() == "original"
    assert first.shared is other.shared


def test_a_name_can_be_replaced_in_one_place_only(run: Run, modules: tuple[Any, Any, Any]) -> None:
    first, second, _ = modules
    with applied([changing("ultralytics.first:shared", everywhere=False)], run):
        assert (first.shared(), second.shared()) == ("replaced", "original")
    assert first.shared is second.shared


def test_a_patch_that_this_version_does_not_need_does_nothing(run: Run, modules: tuple[Any, Any, Any]) -> None:
    asked: list[Any] = []

    def needed(original: Any) -> bool:
        asked.append(original)
        return False

    original = modules[0].shared
    with applied([changing("ultralytics.first:shared", needed=needed)], run) as active:
        assert active == []
        assert modules[0].shared is original
    assert asked == [original]


def test_a_method_that_a_class_inherits_is_not_left_behind_in_it(run: Run, modules: tuple[Any, Any, Any]) -> None:
    first, _, _ = modules
    with applied([changing("ultralytics.first:Child.method", everywhere=False)], run):
        assert first.Child().method() == "replaced"
        assert first.Parent().method() == "original"
    assert first.Child().method() == "original"
    assert "method" not in vars(first.Child)


def test_of_two_rows_for_one_name_the_later_wraps_the_earlier(run: Run, modules: tuple[Any, Any, Any]) -> None:
    first, _, _ = modules
    original = first.shared

    def wrap(text: str) -> Patch:
        return changing("ultralytics.first:shared", replacement=lambda run, inner: lambda: f"{text}({inner()})")

    with applied([wrap("a"), wrap("b")], run):
        assert first.shared() == "b(a(original))"
    assert first.shared is original


def test_somebody_elses_change_on_top_of_ours_stays(run: Run, modules: tuple[Any, Any, Any]) -> None:
    first, second, _ = modules
    original = first.shared
    with applied([changing("ultralytics.first:shared")], run):
        first.shared = theirs = lambda: "theirs"
    assert first.shared is theirs
    assert second.shared is original


def test_rows_are_taken_back_when_the_block_fails(run: Run, modules: tuple[Any, Any, Any]) -> None:
    first, second, _ = modules
    original = first.shared
    with pytest.raises(FaultError), applied([changing("ultralytics.first:shared")], run):
        raise FaultError
    assert first.shared is second.shared is original


def test_rows_are_taken_back_when_a_later_one_can_not_be_made(run: Run, modules: tuple[Any, Any, Any]) -> None:
    first, second, _ = modules
    original = first.shared

    def broken(run: Any, original: Any) -> Any:
        raise FaultError

    with (
        pytest.raises(FaultError),
        applied([changing("ultralytics.first:shared"), changing("ultralytics.first:Parent", replacement=broken)], run),
    ):
        pytest.fail("the block was entered")
    assert first.shared is second.shared is original
