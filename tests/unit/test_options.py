"""The `xpu_*` options: by keyword, by environment and from a resumed run; unseen by Ultralytics."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import yolo_xpu_trainer
from yolo_xpu_trainer import Options, XPUDetectionTrainer
from yolo_xpu_trainer.errors import OptionError, OptionValueError, UnknownOptionError, XPUTrainerError
from yolo_xpu_trainer.options import unknown_variables
from yolo_xpu_trainer.plugins import declared_options

from ..conftest import TrainingData
from ..options import options

Build = Callable[..., Any]


@pytest.fixture
def build(xpu: torch.device, data: TrainingData, tmp_path: Path) -> Build:
    """Return a function that makes a trainer, up to the point where training would begin."""

    def make(trainer: type = XPUDetectionTrainer, **more: Any) -> Any:
        given = {"model": "yolo11n.yaml", "data": data("detect"), "imgsz": 32, "project": str(tmp_path)}
        return trainer(overrides={**given, **more})

    return make


def variable(field: str) -> str:
    return f"YOLO_XPU_{field.upper()}"


SWITCHES = [option.name for option in declared_options() if isinstance(option.default, bool)]
PIN_MEMORY = next(option for option in declared_options() if option.name == "pin_memory")


def test_every_option_has_a_default_a_name_with_a_prefix_and_a_sentence() -> None:
    for option in declared_options():
        assert option.key == f"xpu_{option.name}"
        assert options()[option] == option.default
        assert option.help
        assert option.modes in {"all", "train"}
    assert {"pin_memory", "non_blocking"} <= set(SWITCHES)


# Keywords


def test_a_keyword_reaches_the_run(build: Build) -> None:
    assert build(xpu_pin_memory=False).xpu.options == options(pin_memory=False)


@pytest.mark.parametrize("field", SWITCHES)
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("True", True),
        ("off", False),
        (" YES ", True),
        ("0", False),
    ],
    ids=repr,
)
def test_a_switch_takes_what_a_command_line_or_a_person_would_write(field: str, given: object, meant: bool) -> None:
    assert Options.pop_from({f"xpu_{field}": given}, declared_options()) == {field: meant}


def test_taking_options_leaves_upstreams_arguments() -> None:
    arguments = {"epochs": 3, "xpu_pin_memory": "no", "device": "xpu"}
    assert Options.pop_from(arguments, declared_options()) == {"pin_memory": False}
    assert arguments == {"epochs": 3, "device": "xpu"}


def test_the_callers_own_dictionary_stays_as_it_is(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    given = {
        "model": "yolo11n.yaml",
        "data": data("detect"),
        "project": str(tmp_path),
        "device": torch.device("xpu", 0),
        "amp": "bf16",
        "xpu_pin_memory": False,
    }
    before = dict(given)
    XPUDetectionTrainer(overrides=given)
    assert given == before
    assert list(given) == list(before)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("xpu_pin_memroy", "xpu_pin_memory"),
        ("xpu_pinmemory", "xpu_pin_memory"),
        ("xpu_nonblocking", "xpu_non_blocking"),
        ("xpu_PIN_MEMORY", "xpu_pin_memory"),
    ],
)
def test_a_misspelt_option_is_refused_with_the_name_that_was_meant(build: Build, misspelt: str, meant: str) -> None:
    with pytest.raises(UnknownOptionError, match=f"Did you mean {meant}") as caught:
        build(**{misspelt: True, "data": "does-not-exist.yaml"})
    assert caught.value.name == misspelt
    assert caught.value.value is True
    assert caught.value.suggestions[0] == meant


def test_an_option_like_no_other_is_refused_with_all_there_are(build: Build) -> None:
    with pytest.raises(UnknownOptionError) as caught:
        build(xpu_qqqqqqqqqqqqqqqqqqqq=1)
    assert caught.value.suggestions == ()
    for option in declared_options():
        assert option.key in str(caught.value)


@pytest.mark.parametrize("misspelt", ["xpu_chanels_last", "xpu_fast_nsm", "xpu_plugin"])
def test_only_names_that_are_near_are_suggested(misspelt: str) -> None:
    with pytest.raises(UnknownOptionError) as caught:
        Options.pop_from({misspelt: 0}, declared_options())
    assert caught.value.suggestions in {("xpu_channels_last",), ("xpu_fast_nms",), ("xpu_plugins",)}


@pytest.mark.parametrize("value", ["maybe", 2, -1, None, "", [True]], ids=repr)
def test_a_value_that_a_switch_can_not_take_is_refused(build: Build, value: object) -> None:
    with pytest.raises(OptionValueError, match="is invalid: it must be True or False") as caught:
        build(xpu_pin_memory=value, data="does-not-exist.yaml")
    assert caught.value.name == "xpu_pin_memory"
    assert caught.value.value == value
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, "0"])
def test_ranks_can_not_wait_for_each_other_for_no_time(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionValueError, match=r"xpu_rank_timeout=.* is invalid: it must be an integer ≥ 1"):
        Options.pop_from({"xpu_rank_timeout": value}, declared_options())
    monkeypatch.setenv("YOLO_XPU_RANK_TIMEOUT", str(value))
    with pytest.raises(OptionValueError, match="it must be an integer ≥ 1"):
        Options.resolve(declared_options(), {})


def test_option_errors_are_also_value_errors() -> None:
    assert issubclass(UnknownOptionError, OptionError)
    assert issubclass(OptionValueError, OptionError)
    assert issubclass(OptionError, ValueError)
    assert issubclass(OptionError, XPUTrainerError)


def test_options_are_checked_even_where_the_run_is_not_on_an_xpu(build: Build) -> None:
    with pytest.raises(UnknownOptionError):
        build(device="cpu", xpu_pin_memroy=True)
    assert build(device="cpu", xpu_pin_memory=False).xpu is None


# The environment, a resumed run, and which of them counts


@pytest.mark.parametrize("field", SWITCHES)
@pytest.mark.parametrize(("text", "meant"), [("0", False), ("1", True), ("False", False), ("on", True)])
def test_the_environment_gives_the_default(field: str, text: str, meant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable(field), text)
    assert options().as_dict()[field] is meant


@pytest.mark.parametrize("field", SWITCHES)
def test_a_keyword_counts_before_the_environment_then_the_resumed_run_then_the_default(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = options().as_dict()[field]
    other = not default

    def value(given: dict[str, Any], saved: dict[str, Any]) -> bool:
        return bool(Options.resolve(declared_options(), given, saved).as_dict()[field])

    assert value({}, {}) is default
    assert value({}, {field: other}) is other
    monkeypatch.setenv(variable(field), str(int(default)))
    assert value({}, {field: other}) is default
    assert value({field: other}, {field: default}) is other
    monkeypatch.setenv(variable(field), str(int(other)))
    assert value({}, {}) is other
    assert value({field: default}, {field: other}) is default


def test_a_bad_value_in_the_environment_is_refused_by_the_variables_name(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_XPU_PIN_MEMORY", "perhaps")
    with pytest.raises(OptionValueError, match="YOLO_XPU_PIN_MEMORY='perhaps'") as caught:
        build()
    assert caught.value.name == "YOLO_XPU_PIN_MEMORY"
    assert build(xpu_pin_memory=True).xpu.options[PIN_MEMORY]


def test_an_option_that_acts_in_validation_too_counts_before_a_bad_value_in_the_environment(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_XPU_FAST_NMS", "perhaps")
    with pytest.raises(OptionValueError, match="YOLO_XPU_FAST_NMS='perhaps'"):
        build()
    assert build(xpu_fast_nms=False).xpu.options.as_dict()["fast_nms"] is False


# Variables that nobody reads


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("YOLO_XPU_PREFTCH", ["YOLO_XPU_PREFETCH"]),
        ("YOLO_XPU_PLUGIN", ["YOLO_XPU_PLUGINS"]),
        ("YOLO_XPU_AUTOLAOD", ["YOLO_XPU_AUTOLOAD"]),
        ("YOLO_XPU_TRAINERS", ["YOLO_XPU_TRAINER"]),
        ("YOLO_XPU_DEVICE", []),
        ("YOLO_XPU_", []),
    ],
)
def test_a_variable_that_nobody_reads_is_found_with_those_that_are_near(
    variable: str, near: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "0")
    assert unknown_variables(declared_options()) == {variable: near}


def test_every_variable_that_the_package_names_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(yolo_xpu_trainer.__file__).parent
    files = [*package.rglob("*.py"), package.parent / "_yolo_xpu_trainer_autoload.py"]
    named = {name for file in files for name in re.findall(r"YOLO_XPU_[A-Z_]*[A-Z]", file.read_text("utf-8"))}
    assert {"YOLO_XPU_AMP", "YOLO_XPU_AUTOLOAD", "YOLO_XPU_CHILD", "YOLO_XPU_PREFETCH", "YOLO_XPU_TRAINER"} <= named
    for name in {*named, *(option.variable for option in declared_options())}:
        monkeypatch.setenv(name, "0")
    assert unknown_variables(declared_options()) == {}


def test_options_that_an_older_or_newer_release_saved_do_not_stop_a_resume() -> None:
    assert Options.resolve(declared_options(), {}, {"from_the_future": 1, "pin_memory": False}) == options(
        pin_memory=False
    )


def test_a_child_process_is_told_what_the_user_gave_and_no_default(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = {"YOLO_XPU_AMP": "auto"}
    assert build().xpu.environment() == auto
    monkeypatch.setenv("YOLO_XPU_TF32", "0")
    given = build(xpu_pin_memory=True).xpu  # the default, but given
    assert given.environment() == {**auto, "YOLO_XPU_PIN_MEMORY": "1", "YOLO_XPU_TF32": "0"}


def test_what_a_resumed_run_was_given_is_given_and_its_defaults_are_not() -> None:
    saved = {**options().as_dict(), "pin_memory": False, "prefetch": 3}
    resumed = Options.resolve(declared_options(), {"prefetch": 2}, saved)
    assert resumed.decided() == {"pin_memory": False, "prefetch": 2}
    assert resumed.is_given(PIN_MEMORY)
    assert not Options.resolve(declared_options(), {}, options().as_dict()).decided()


def test_a_child_process_decides_the_same_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    decided = options(**{name: not options().as_dict()[name] for name in SWITCHES})
    for name, value in Options.environment_of(decided.decided()).items():
        monkeypatch.setenv(name, value)
    assert options() == decided
