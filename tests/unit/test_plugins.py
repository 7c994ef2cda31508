"""Policies are plugins: the built-in ones come by entry points, others go before them, broken ones cost no run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy
import pytest
import torch
from ultralytics import YOLO

from yolo_xpu_trainer import XPUDetectionTrainer, commands, devices, hookimpl, hookspecs, plugins
from yolo_xpu_trainer.devices import DeviceInfo
from yolo_xpu_trainer.patches import Patch
from yolo_xpu_trainer.run import Precision

from ..conftest import TrainingData

GROUP = "yolo_xpu_trainer"


@contextmanager
def registered(plugin: object) -> Iterator[None]:
    """Have a plugin for the length of a block."""
    manager = plugins.manager()
    manager.register(plugin, name="test")
    try:
        yield
    finally:
        manager.unregister(plugin)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """A list of further entry points, which a fresh plugin manager finds before the built-in ones."""
    more: list[EntryPoint] = []

    def found(*, group: str) -> list[EntryPoint]:
        return [*(entry for entry in more if entry.group == group), *entry_points(group=group)]

    monkeypatch.setattr(plugins, "entry_points", found)
    plugins.manager.cache_clear()
    yield more
    plugins.manager.cache_clear()


def module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> EntryPoint:
    """Write somebody else's plugin; return the entry point that names it."""
    monkeypatch.syspath_prepend(folder)
    (folder / f"{name}.py").write_text(text)
    return EntryPoint(name=name, value=name, group=GROUP)


@pytest.fixture
def train(xpu: torch.device, data: TrainingData, tmp_path: Path) -> Any:
    """Return a function that trains a model for an epoch, and returns the trainer."""

    def run(**more: Any) -> Any:
        model = YOLO("yolo11n.yaml")
        given = {"data": data("detect"), "epochs": 1, "imgsz": 32, "plots": False, "project": str(tmp_path)}
        model.train(trainer=XPUDetectionTrainer, **given, **more)
        return model.trainer

    return run


# The built-in ones


def test_the_built_in_policies_are_the_modules_of_policies_and_need_no_metadata(
    others: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolo_xpu_trainer import policies

    monkeypatch.setattr(plugins, "entry_points", lambda *, group: [])
    files = {path.stem for path in Path(str(policies.__path__[0])).glob("*.py")} - {"__init__"}
    assert {name for name, _ in plugins.manager().list_name_plugin()} == files == set(plugins.built_in())
    for name in files:
        assert plugins.manager().get_plugin(name).__name__ == f"yolo_xpu_trainer.policies.{name}"


def test_every_hook_has_a_specification_and_every_implementation_a_hook() -> None:
    manager = plugins.manager()
    specified = {name for name in vars(hookspecs) if name.startswith("xpu_")}
    assert specified == {name for name in vars(manager.hook) if name.startswith("xpu_")}
    for plugin in manager.get_plugins():
        for caller in manager.get_hookcallers(plugin) or []:
            assert caller.spec is not None, caller.name


def test_the_manager_is_made_once() -> None:
    assert plugins.manager() is plugins.manager()


# Others


class Fixed:
    """Decides the precision of every run."""

    def __init__(self, answer: Precision | None) -> None:
        self.answer = answer
        self.asked: list[tuple[DeviceInfo, bool | str]] = []

    @hookimpl
    def xpu_precision(self, device: DeviceInfo, requested: bool | str) -> Precision | None:
        self.asked.append((device, requested))
        return self.answer


def test_another_plugins_precision_counts_before_the_built_in_one(train: Any) -> None:
    plugin = Fixed(Precision("fp16", "a plugin says so", requested=True))
    with registered(plugin):
        trainer = train()
    assert trainer.xpu.precision == plugin.answer
    assert trainer.scaler.is_enabled()
    assert plugin.asked == [(devices.info(0), True)]
    assert train().xpu.precision.name == "bf16"


def test_a_plugin_that_answers_none_leaves_it_to_the_next(xpu: torch.device) -> None:
    plugin = Fixed(None)
    with registered(plugin):
        precision = plugins.manager().hook.xpu_precision(device=devices.info(0), requested=True)
    assert precision.name == "bf16"
    assert len(plugin.asked) == 1


def test_a_plugin_is_told_what_the_user_asked_for(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    plugin = Fixed(None)
    given = {"model": "yolo11n.yaml", "data": data("detect"), "project": str(tmp_path)}
    with registered(plugin):
        for amp in (True, False, "bf16", "fp16", "fp32", "BF16"):
            XPUDetectionTrainer(overrides={**given, "amp": amp})
    assert [requested for _, requested in plugin.asked] == [True, False, "bf16", "fp16", "fp32", "bf16"]


class Seams:
    """Has a hand in every seam of a run."""

    def __init__(self) -> None:
        self.called: list[str] = []

    @hookimpl
    def xpu_wrap_dataloader(self, trainer: Any, loader: Any, mode: str) -> None:
        self.called.append(f"loader {mode}")

    @hookimpl
    def xpu_move_batch(self, batch: dict[str, Any]) -> None:
        self.called.append("batch")

    @hookimpl
    def xpu_memory(self, device: DeviceInfo) -> tuple[int, int]:
        self.called.append("memory")
        return 3 << 30, 4 << 30

    @hookimpl
    def xpu_after_setup(self, trainer: Any) -> None:
        assert trainer.optimizer is not None
        self.called.append("after setup")

    @hookimpl
    @contextmanager
    def xpu_around_save(self, trainer: Any) -> Iterator[None]:
        self.called.append("save")
        yield
        assert trainer.last.exists()
        self.called.append("saved")

    @hookimpl
    def xpu_patches(self, trainer: Any) -> list[Patch]:
        return [
            Patch(
                target="ultralytics.utils.torch_utils:one_cycle",
                why="of this test",
                needed=lambda original: self.called.append("patch") or False,  # type: ignore[func-returns-value]
                replacement=lambda run, original: original,
            )
        ]


def test_a_plugin_is_called_at_every_seam_and_the_built_in_policies_still_act(train: Any) -> None:
    plugin = Seams()
    with registered(plugin):
        trainer = train(batch=4, val=False)
        assert trainer._get_memory() == 3.0
        assert trainer._get_memory(fraction=True) == 0.75
    order = list(dict.fromkeys(plugin.called))
    assert order == ["patch", "loader train", "loader val", "after setup", "batch", "memory", "save", "saved"]
    assert plugin.called.count("batch") == 2
    assert torch.load(trainer.last, map_location="cpu", weights_only=False)["xpu_trainer"]["precision"] == "bf16"
    assert trainer._get_memory() < 3.0


def test_a_run_on_the_cpu_asks_no_plugin(train: Any) -> None:
    plugin = Seams()
    with registered(plugin):
        train(device="cpu")
    assert plugin.called == []


# By entry point


GOOD = """
from yolo_xpu_trainer import hookimpl
from yolo_xpu_trainer.run import Precision

@hookimpl
def xpu_precision(requested):
    return Precision("fp32", "theirs", requested=True)
"""


MARKED = "from yolo_xpu_trainer import hookimpl\n@hookimpl\n"


def test_a_plugin_of_another_package_is_found_by_its_entry_point_and_asked_first(
    train: Any, others: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others.append(module(tmp_path, "a_good_plugin", GOOD, monkeypatch))
    trainer = train()
    assert trainer.xpu.precision.reason == "theirs"
    assert trainer.amp is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('it fell apart')", "it fell apart"),
        ("import a_module_that_is_not_installed", "a_module_that_is_not_installed"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        (f"{MARKED}def xpu_precision(no_such_argument): ...", "no_such_argument"),
        (f"{MARKED}def xpu_no_such_hook(): ...", "xpu_no_such_hook"),
    ],
    ids=["raises", "misses a package", "is no Python", "exits", "asks for an unknown argument", "has an unknown hook"],
)
def test_a_broken_plugin_is_named_and_left_out_and_the_run_goes_on(
    train: Any,
    others: list[EntryPoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: list[logging.LogRecord],
    text: str,
    said: str,
) -> None:
    others.append(module(tmp_path, "a_broken_plugin", text, monkeypatch))
    monkeypatch.delitem(__import__("sys").modules, "a_broken_plugin", raising=False)
    trainer = train(val=False)
    assert trainer.xpu.precision.name == "bf16"
    assert trainer.last.exists()
    warnings = [r.getMessage() for r in log if r.levelno >= logging.WARNING and "a_broken_plugin" in r.getMessage()]
    assert len(warnings) == 1
    assert said in warnings[0]
    assert plugins.manager().get_plugin("a_broken_plugin") is None


def test_an_entry_point_to_nowhere_is_named_too(
    xpu: torch.device, others: list[EntryPoint], log: list[logging.LogRecord]
) -> None:
    others.append(EntryPoint(name="lost", value="no_such_module_at_all:plugin", group=GROUP))
    assert plugins.manager().hook.xpu_precision(device=devices.info(0), requested=True).name == "bf16"
    (warning,) = [r.getMessage() for r in log if "lost" in r.getMessage()]
    assert "no_such_module_at_all:plugin" in warning


# Limited, and listed


@pytest.mark.parametrize(("named", "left"), [("", set()), ("one", {"one"}), (" two , one ", {"one", "two"})])
def test_a_variable_limits_other_plugins_but_never_the_built_in_ones(
    others: list[EntryPoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: list[logging.LogRecord],
    named: str,
    left: set[str],
) -> None:
    others.extend(module(tmp_path, name, GOOD, monkeypatch) for name in ("one", "two"))
    monkeypatch.setenv("YOLO_XPU_PLUGINS", named)
    loaded = {name for name, _ in plugins.manager().list_name_plugin()}
    assert loaded & {"one", "two"} == left
    assert {"checkpoint", "dataloader", "memory", "precision"} <= loaded
    assert not log


def test_a_name_in_the_variable_that_nothing_has_is_reported(
    others: list[EntryPoint], monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]
) -> None:
    monkeypatch.setenv("YOLO_XPU_PLUGINS", "absent")
    plugins.hooks()
    plugins.hooks()
    (warning,) = [r.getMessage() for r in log]
    assert "xpu_plugins='absent' names 'absent', which is not loaded" in warning


def test_the_command_lists_who_is_asked_and_in_which_order(
    others: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    others.append(module(tmp_path, "theirs", GOOD, monkeypatch))
    assert commands.main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in vars(plugins.manager().hook):
        assert any(name in line for line in lines)
    (precision,) = [line for line in lines if "xpu_precision" in line]
    assert "theirs or else precision" in precision
    (moves,) = [line for line in lines if "xpu_move_batch" in line]
    assert "loss_syncs around dataloader" in moves


def test_markers_are_pluggys() -> None:
    assert isinstance(hookimpl, pluggy.HookimplMarker)
    assert hookimpl.project_name == plugins.manager().project_name
