"""A patch replaces what it names, wherever it was imported, and puts it back; what moved is left alone and reported."""

from __future__ import annotations

import importlib
import logging
import sys
import types
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import XPUDetectionTrainer, devices
from yolo_xpu_trainer.patches import Patch, applied
from yolo_xpu_trainer.run import Precision, Run

from ..conftest import TrainingData
from ..options import options

Names = dict[tuple[str, str], object]

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


def test_making_a_trainer_changes_nothing(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    importlib.import_module("torch._dynamo")  # replaces torch.manual_seed when it is first imported, whoever does that
    before = snapshot()
    trainer = XPUDetectionTrainer(overrides={"model": "yolo11n.yaml", "data": data("detect"), "project": str(tmp_path)})
    assert trainer.xpu is not None
    assert changed(before, snapshot()) == set()


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


# Patches by themselves


class FaultError(Exception):
    """Ends a run in the middle."""


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
