"""Policies are plugins: built-in modules, and others by entry points, which go first; broken ones cost no run."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint
from pathlib import Path

import pluggy
import pytest
import torch

from yolo_xpu_trainer import Options, XPUDetectionTrainer, commands, devices, hookimpl, hookspecs, plugins
from yolo_xpu_trainer.devices import DeviceInfo
from yolo_xpu_trainer.errors import OptionValueError
from yolo_xpu_trainer.run import Precision

from ..conftest import TrainingData
from ..other_plugins import GOOD, GROUP, module, registered

# The built-in ones


def test_the_built_in_policies_are_the_modules_of_policies_and_need_no_metadata(
    others: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolo_xpu_trainer import policies

    monkeypatch.setattr(plugins, "entry_points", lambda *, group: [])
    folder = Path(str(policies.__path__[0]))
    files = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    files -= {"__init__"}
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


def test_a_plugin_that_the_environment_refuses_may_be_refused_once_more(
    others: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]
) -> None:
    others.append(module(tmp_path, "theirs", GOOD, monkeypatch))
    monkeypatch.setenv("YOLO_XPU_PLUGINS", "-theirs")
    plugins.hooks()
    plugins.hooks("-theirs,-nms")
    assert plugins.manager().get_plugin("theirs") is None
    assert not log
    plugins.hooks("theirs")
    (warning,) = [r.getMessage() for r in log]
    assert "names 'theirs', which is not loaded" in warning


@pytest.mark.parametrize(("named", "near"), [("nsm", "nms"), ("prefetsh", "prefetch"), ("memry", "memory")])
def test_a_name_that_nothing_has_is_reported_with_the_nearest(
    others: list[EntryPoint], log: list[logging.LogRecord], named: str, near: str
) -> None:
    plugins.hooks(f"-{named}")
    (warning,) = [r.getMessage() for r in log]
    assert f"Did you mean {near!r}?" in warning


def test_whether_a_policy_is_blocked_is_told_without_loading_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "manager", lambda: pytest.fail("a plugin manager was made"))
    assert not plugins.is_blocked("nms")
    monkeypatch.setenv("YOLO_XPU_PLUGINS", "grey, -nms")
    assert plugins.is_blocked("nms")
    assert not plugins.is_blocked("metrics")


@pytest.mark.parametrize("value", [5, None, True, ["-nms"]], ids=repr)
def test_which_plugins_are_asked_is_said_in_words(value: object) -> None:
    with pytest.raises(OptionValueError, match="is invalid: it must be text"):
        plugins.PLUGINS.parse(value)


# Options of others


OPTIONS = """
from yolo_xpu_trainer import Option, Precision, hookimpl

@hookimpl
def xpu_options():
    {body}

@hookimpl
def xpu_precision():
    return Precision("fp32", "theirs")
"""


def test_a_plugins_options_are_taken_with_the_built_in_ones(
    others: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]
) -> None:
    text = OPTIONS.format(body="return [Option('shade', 0.5, 'how grey')]")
    others.append(module(tmp_path, "theirs", text, monkeypatch))
    assert Options.pop_from({"xpu_shade": 1, "xpu_prefetch": 0}, plugins.declared_options()) == {
        "shade": 1.0,
        "prefetch": 0,
    }
    assert not log


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise RuntimeError('it fell apart')", "it fell apart"),
        ("raise SystemExit(3)", "SystemExit"),
        ("return 5", "'int' object is not iterable"),
        ("return ['shade']", "'shade' is not an Option"),
        ("return [Option('shade', None, 'how grey')]", "is not an Option whose default"),
        ("return [Option('Shade', 0.5, 'how grey')]", "must consist of lower-case letters"),
        ("return [Option('prefetch', 0.5, 'how grey')]", "xpu_prefetch is declared already"),
        ("return [Option('shade', 0.5, 'how grey')] * 2", "xpu_shade is declared already"),
        *(
            (f"return [Option({name!r}, 'x', 'mine')]", f"xpu_{name} can't be declared: YOLO_XPU_{name.upper()}")
            for name in ("amp", "autoload", "child", "plugins", "trainer")
        ),
    ],
)
def test_a_plugin_whose_options_can_not_be_taken_is_disabled_after_one_warning(
    body: str,
    said: str,
    xpu: torch.device,
    others: list[EntryPoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: list[logging.LogRecord],
) -> None:
    before = [option.key for option in plugins.declared_options()]
    plugins.manager.cache_clear()
    others.append(module(tmp_path, "theirs", OPTIONS.format(body=body), monkeypatch))
    assert [option.key for option in plugins.declared_options()] == before
    assert plugins.hooks().xpu_precision(device=devices.info(0), requested=True).name == "bf16"
    (warning,) = [r.getMessage() for r in log]
    assert "plugin 'theirs' is disabled" in warning
    assert said in warning


def test_a_plugin_that_goes_first_takes_no_built_in_option(
    others: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]
) -> None:
    text = OPTIONS.format(body="return [Option('prefetch', 5, 'mine')]")
    text = text.replace("@hookimpl\n", "@hookimpl(tryfirst=True)\n")
    others.append(module(tmp_path, "theirs", text, monkeypatch))
    (prefetch,) = [option for option in plugins.declared_options() if option.name == "prefetch"]
    assert prefetch.default == 1
    assert ["'theirs'" in r.getMessage() for r in log] == [True]


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
    assert "loss_syncs around summary around dataloader" in moves


def test_markers_are_pluggys() -> None:
    assert isinstance(hookimpl, pluggy.HookimplMarker)
    assert hookimpl.project_name == plugins.manager().project_name
