"""What `YOLO(…)` and the command `yolo` take with this package: trainers by name, options, any form of a device."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ultralytics import RTDETR, YOLO
from ultralytics.cfg import entrypoint
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, YAML

import xpu_simulator
from yolo_xpu_trainer import Option, Options, XPUDetectionTrainer, XPUTrainer, hookimpl, plugins, trainers
from yolo_xpu_trainer.errors import (
    NoSuchXPUError,
    NoXPUError,
    OptionValueError,
    UnknownDeviceError,
    UnknownOptionError,
    UnknownTrainerError,
)

from ..conftest import TrainingData
from ..options import options
from .cases import TINY_RTDETR

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),  # of Ultralytics' export to TorchScript
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

Choose = Callable[..., Any]


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Ends a training before it begins."""


@pytest.fixture
def choose(data: TrainingData, tmp_path: Path) -> Choose:
    """Return a function that trains a model up to its first event, and returns the trainer."""

    def run(model: Any = "yolo11n.yaml", task: str = "detect", **given: Any) -> Any:
        chosen: list[Any] = []

        def stop(trainer: Any) -> None:
            chosen.append(trainer)
            raise Stopped

        model = YOLO(model) if isinstance(model, str) else model
        model.add_callback("on_pretrain_routine_start", stop)
        with pytest.raises(Stopped):
            model.train(data=data(task), imgsz=32, project=str(tmp_path), **given)
        return chosen[0]

    return run


@pytest.fixture(scope="module")
def best(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of one epoch."""
    folder = tmp_path_factory.mktemp("best")
    with xpu_simulator.use_profile("arc-b580"):
        model = YOLO("yolo11n.yaml")
        model.train(data=data("detect"), epochs=1, imgsz=32, workers=0, plots=False, project=str(folder))
        return str(model.trainer.best)


@pytest.fixture
def image(data: TrainingData) -> str:
    return str(Path(data("detect")).parent / "images" / "val" / "0.png")


def messages(log: list[logging.LogRecord], *, level: int = logging.WARNING) -> list[str]:
    """Return what this package reported."""
    return [r.getMessage() for r in log if r.levelno >= level and "XPU" in r.getMessage()]


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=False)  # type: ignore[no-any-return]


# A trainer by its name


@pytest.mark.parametrize(
    ("model", "task", "expected"),
    [
        ("yolo11n.yaml", "detect", "XPUDetectionTrainer"),
        ("yolo11n-seg.yaml", "segment", "XPUSegmentationTrainer"),
        ("yolo11n-cls.yaml", "classify", "XPUClassificationTrainer"),
        ("yolo11n-pose.yaml", "pose", "XPUPoseTrainer"),
        ("yolo11n-obb.yaml", "obb", "XPUOBBTrainer"),
        ("yolo26n-sem.yaml", "semantic", "XPUSemanticSegmentationTrainer"),
        ("yolo26n-depth.yaml", "depth", "XPUDepthTrainer"),
        ("yolov8n-worldv2.yaml", "detect", "XPUWorldTrainer"),
        ("yoloe-11n.yaml", "detect", "XPUYOLOETrainer"),
    ],
)
def test_a_named_trainer_is_the_one_of_the_models_task(
    model: str, task: str, expected: str, xpu: torch.device, choose: Choose
) -> None:
    named = choose(model, task, trainer="xpu")
    assert type(named) is getattr(trainers, expected)
    assert named.device == xpu
    assert type(choose(model, task)) is type(named)


def test_a_named_trainer_is_the_one_of_the_models_class(xpu: torch.device, choose: Choose) -> None:
    Path("rtdetr-tiny.yaml").write_text(TINY_RTDETR)
    assert type(choose(RTDETR("rtdetr-tiny.yaml"), trainer="xpu")) is trainers.XPURTDETRTrainer


def test_an_unknown_name_is_refused_with_those_that_are_registered(xpu: torch.device) -> None:
    with pytest.raises(UnknownTrainerError, match="Registered: xpu") as caught:
        YOLO("yolo11n.yaml").train(trainer="xpuu", data="does-not-exist.yaml")
    assert caught.value.name == "xpuu"
    assert caught.value.known == ("xpu",)
    assert "yolo-xpu plugins" in str(caught.value)


def test_a_name_that_another_plugin_registers_is_known_too(xpu: torch.device, choose: Choose) -> None:
    class Theirs:
        @hookimpl
        def xpu_trainers(self, upstream: type) -> dict[str, type]:
            return {"mine": Mine} if upstream is DetectionTrainer else {}

    plugins.manager().register(Theirs(), name="theirs")
    try:
        assert type(choose(trainer="mine")) is Mine
        assert type(choose(trainer="xpu")) is XPUDetectionTrainer
        with pytest.raises(UnknownTrainerError) as caught:
            YOLO("yolo11n.yaml").train(trainer="nobodys")
        assert caught.value.known == ("mine", "xpu")
        with pytest.raises(UnknownTrainerError) as caught:
            YOLO("yolo11n-cls.yaml").train(trainer="mine")
        assert caught.value.known == ("xpu",)
    finally:
        plugins.manager().unregister(name="theirs")


def test_a_plugin_may_stand_in_for_our_own_trainer_whatever_its_constructor_takes(
    xpu: torch.device, choose: Choose
) -> None:
    class Own(XPUDetectionTrainer):
        def __init__(self, cfg: Any = DEFAULT_CFG, overrides: Any = None, _callbacks: Any = None) -> None:
            super().__init__(cfg, overrides, _callbacks)

    class Theirs:
        @hookimpl
        def xpu_trainers(self, upstream: type) -> dict[str, type]:
            return {"xpu": Own}

    plugins.manager().register(Theirs(), name="theirs")
    try:
        assert type(choose(trainer="xpu")) is Own
        assert type(choose()) is Own
    finally:
        plugins.manager().unregister(name="theirs")


def test_a_variable_names_the_trainer_where_nobody_else_does(
    xpu: torch.device, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cuda(monkeypatch)
    assert choose().device.type == "cuda"
    monkeypatch.setenv("YOLO_XPU_TRAINER", "xpu")
    assert choose().device == xpu
    assert type(choose(trainer=MyTrainer, device="cpu")) is MyTrainer
    monkeypatch.setenv("YOLO_XPU_TRAINER", "nobodys")
    with pytest.raises(UnknownTrainerError, match="nobodys"):
        YOLO("yolo11n.yaml").train()


@pytest.mark.xpu_profile("none")
def test_without_an_xpu_a_named_trainer_trains_where_ultralytics_would_after_one_warning(
    xpu: torch.device, choose: Choose, log: list[logging.LogRecord]
) -> None:
    trainer = choose(trainer="xpu")
    assert type(trainer) is XPUDetectionTrainer
    assert (trainer.xpu, trainer.device) == (None, torch.device("cpu"))
    (said,) = messages(log)
    assert "finds no XPU" in said
    assert "yolo-xpu doctor" in said


# Plain train()


def test_plain_train_chooses_the_xpu_and_says_so(
    xpu: torch.device, data: TrainingData, tmp_path: Path, log: list[logging.LogRecord]
) -> None:
    model = YOLO("yolo11n.yaml")
    model.train(data=data("detect"), epochs=1, imgsz=32, workers=0, plots=False, project=str(tmp_path))
    assert type(model.trainer) is XPUDetectionTrainer
    assert model.trainer.device == xpu
    said = messages(log, level=logging.INFO)
    assert len([line for line in said if "Arc B580" in line and "bf16" in line]) == 1
    assert messages(log) == []


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show Ultralytics a CUDA device. No further: nothing can be computed on it."""
    found = SimpleNamespace(name="A CUDA device", total_memory=8 << 30, major=8, minor=6, multi_processor_count=30)
    for name, value in (("is_available", True), ("device_count", 1), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: found)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.parametrize("device", [None, "", 0, "0", "cuda:0"], ids=repr)
def test_where_there_is_a_cuda_device_plain_train_is_ultralytics_affair(
    device: Any, xpu: torch.device, choose: Choose, monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]
) -> None:
    pretend_cuda(monkeypatch)
    trainer = choose(device=device)
    assert (trainer.xpu, trainer.device) == (None, torch.device("cuda", 0))
    assert messages(log) == []


def test_even_there_a_named_trainer_means_the_xpu(
    xpu: torch.device, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cuda(monkeypatch)
    assert choose(trainer="xpu").device == xpu
    assert choose(device="xpu").device == xpu


@pytest.mark.xpu_profile("none")
def test_without_an_xpu_plain_train_is_ultralytics_own(
    xpu: torch.device, choose: Choose, log: list[logging.LogRecord]
) -> None:
    trainer = choose()
    assert type(trainer) is DetectionTrainer
    assert trainer.device == torch.device("cpu")
    assert messages(log) == []
    with pytest.raises(NoXPUError):
        YOLO("yolo11n.yaml").train(data="does-not-exist.yaml", device="xpu")


def test_on_the_cpu_no_policy_acts(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    model = YOLO("yolo11n.yaml")
    with xpu_simulator.count() as counts:
        given = {"epochs": 1, "imgsz": 32, "workers": 0, "plots": False, "project": str(tmp_path)}
        model.train(data=data("detect"), device="cpu", **given)
    assert (model.trainer.xpu, model.trainer.device) == (None, torch.device("cpu"))
    assert counts.launches == 0
    saved = checkpoint(model.trainer.last)
    assert "xpu_trainer" not in saved
    assert saved["train_args"]["device"] == "cpu"


def test_moving_the_model_says_nothing_about_the_training(xpu: torch.device, choose: Choose) -> None:
    assert choose(YOLO("yolo11n.yaml").to("xpu:0"), device="cpu").device == torch.device("cpu")
    assert choose(YOLO("yolo11n.yaml").to("xpu:0")).device == xpu


# Moving a model


MOVES: dict[str, Callable[[Any], Any]] = {
    "to('xpu')": lambda model: model.to("xpu"),
    "to('xpu:7')": lambda model: model.to("xpu:7"),
    "to(device)": lambda model: model.to(torch.device("xpu", 7), torch.float32),
    "to(device=…)": lambda model: model.to(device="xpu:7"),
    "xpu()": lambda model: model.xpu(),
    "xpu(7)": lambda model: model.xpu(7),
    "xpu(device)": lambda model: model.xpu(torch.device("xpu", 7)),
}


@pytest.mark.xpu_profile("none")
@pytest.mark.parametrize("move", MOVES)
def test_moving_a_model_where_there_is_no_xpu_says_what_training_there_says(move: str, xpu: torch.device) -> None:
    with pytest.raises(NoXPUError, match="the driver shows no XPU") as caught:
        MOVES[move](YOLO("yolo11n.yaml"))
    assert isinstance(caught.value, RuntimeError)  # as PyTorch's own


@pytest.mark.parametrize("move", [move for move in MOVES if move not in ("to('xpu')", "xpu()")])
def test_moving_a_model_to_an_xpu_that_is_not_there_names_those_that_are(move: str, xpu: torch.device) -> None:
    with pytest.raises(NoSuchXPUError, match=r"Asked for xpu:7, but this process sees 1 XPU .*B580") as caught:
        MOVES[move](YOLO("yolo11n.yaml"))
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.to("xpu:0"),
        lambda model: model.to(device=torch.device("xpu")),
        lambda model: model.xpu(),
        lambda model: model.xpu(0),
        lambda model: model.xpu("xpu:0"),
        lambda model: model.to("cpu").to(torch.float16).to("xpu", dtype=torch.float32),
    ],
)
def test_moving_a_model_to_an_xpu_that_is_there_moves_it(move: Callable[[Any], Any], xpu: torch.device) -> None:
    model = YOLO("yolo11n.yaml")
    assert move(model) is model
    assert (model.device, next(model.model.parameters()).dtype) == (xpu, torch.float32)


@pytest.mark.parametrize("move", ["to('xpu:0')", "xpu()"])
def test_moving_a_model_without_xpu_support_in_pytorch_says_which_wheel_to_install(move: str) -> None:
    code = (
        "from ultralytics import YOLO\n"
        "from yolo_xpu_trainer import WrongBuildError\n"
        "try:\n"
        f"    YOLO('yolo11n.yaml').{move}\n"
        "except AssertionError as error:\n"  # as PyTorch's own
        "    print(type(error) is WrongBuildError, error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XPU_SIMULATOR"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "True Asked for xpu" in done.stdout
    assert "whl/xpu" in done.stdout


# The options, in every mode


@pytest.fixture
def no_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for the package `lap`, which Ultralytics would download to track; nothing is detected here to track."""
    lap = ModuleType("lap")
    lap.__version__ = "0.5.12"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lap", lap)


def train(model: YOLO, **more: Any) -> None:
    model.train(**{"epochs": 1, "imgsz": 32, "workers": 0, "plots": False, "val": False, **more})


MODES: dict[str, Callable[..., Any]] = {
    "train": lambda model, data, image, **more: train(model, data=data, project=os.getcwd(), **more),
    "val": lambda model, data, image, **more: model.val(
        data=data, imgsz=32, workers=0, plots=False, project=os.getcwd(), **more
    ),
    "predict": lambda model, data, image, **more: model.predict(image, imgsz=32, **more),
    "track": lambda model, data, image, **more: model.track(image, imgsz=32, **more),
    "export": lambda model, data, image, **more: model.export(format="torchscript", imgsz=32, **more),
    "benchmark": lambda model, data, image, **more: model.benchmark(data=data, format="-", imgsz=32, **more),
}
EVENTS = {"train": "on_train_start", "val": "on_val_start", "predict": "on_predict_start", "export": "on_export_start"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_takes_the_options_and_ultralytics_sees_none(
    mode: str, xpu: torch.device, no_trackers: None, data: TrainingData, best: str, image: str
) -> None:
    seen: list[list[str]] = []
    model = YOLO(best)
    if mode in EVENTS:
        model.add_callback(EVENTS[mode], lambda at: seen.append(list(vars(at.args))))
    MODES[mode](model, data("detect"), image, xpu_pin_memory=False, xpu_non_blocking="no")
    assert not [name for names in [*seen, list(model.overrides)] for name in names if name.startswith("xpu_")]
    assert bool(seen) == (mode in EVENTS)


@pytest.fixture
def fast_nms() -> Option[bool]:
    (option,) = [option for option in plugins.declared_options() if option.name == "fast_nms"]
    return option


@pytest.mark.parametrize("mode", ["predict", "track"])
def test_options_hold_in_each_step_of_a_stream_and_not_between(
    mode: str, xpu: torch.device, no_trackers: None, best: str, image: str, fast_nms: Option[bool]
) -> None:
    during: list[bool] = []
    model = YOLO(best)
    model.add_callback("on_predict_postprocess_end", lambda predictor: during.append(fast_nms.current()))
    stream = getattr(model, mode)(Path(image).parent, stream=True, imgsz=32, xpu_fast_nms=False)
    between = [fast_nms.current() for _ in stream]
    assert len(between) > 1
    assert (set(during), set(between)) == ({False}, {True})


def test_two_streams_at_a_time_have_options_of_their_own(
    xpu: torch.device, best: str, image: str, fast_nms: Option[bool]
) -> None:
    during: dict[bool, list[bool]] = {True: [], False: []}

    def stream(value: bool) -> Any:
        model = YOLO(best)
        model.add_callback("on_predict_postprocess_end", lambda predictor: during[value].append(fast_nms.current()))
        return model(Path(image).parent, stream=True, imgsz=32, xpu_fast_nms=value)

    steps = len(list(zip(stream(True), stream(False), strict=True)))
    assert steps > 1
    assert during == {True: [True] * steps, False: [False] * steps}


def test_a_stream_that_is_left_early_ends_ultralytics_own(xpu: torch.device, best: str, image: str) -> None:
    model = YOLO(best)
    stream = model.predict(Path(image).parent, stream=True, imgsz=32)
    next(stream)
    assert model.predictor._lock.locked()
    stream.close()
    assert not model.predictor._lock.locked()
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("trainer", [None, "xpu", XPUDetectionTrainer], ids=["None", "by name", "by class"])
@pytest.mark.parametrize("outer", [None, XPUDetectionTrainer], ids=["in a plain one", "in one by class"])
def test_a_training_in_a_callback_of_another_has_options_of_its_own(
    outer: Any, trainer: Any, xpu: torch.device, data: TrainingData, tmp_path: Path
) -> None:
    given = {"data": data("detect"), "project": str(tmp_path), "val": True}
    inner = YOLO("yolo11n.yaml")
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_start", lambda _: train(inner, trainer=trainer, xpu_tf32=True, **given))
    train(model, trainer=outer, xpu_prefetch=0, xpu_fast_nms=False, xpu_plugins="-metrics", **given)
    assert inner.trainer.xpu.options == options(tf32=True)
    assert inner.trainer.xpu.options.decided() == {"tf32": True}
    assert model.trainer.xpu.options == options(prefetch=0, fast_nms=False, plugins="-metrics")
    assert inner.trainer.last.exists()
    assert model.trainer.last.exists()


def test_the_options_of_a_training_are_not_those_of_somebody_elses_in_its_callback(
    xpu: torch.device, data: TrainingData, tmp_path: Path, fast_nms: Option[bool]
) -> None:
    during: list[bool] = []
    given = {"data": data("detect"), "project": str(tmp_path), "val": True}
    inner = YOLO("yolo11n.yaml")
    inner.add_callback("on_val_start", lambda validator: during.append(fast_nms.current()))
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_start", lambda _: train(inner, trainer=MyTrainer, **given))
    train(model, xpu_fast_nms=False, **given)
    assert during
    assert set(during) == {True}


@pytest.mark.parametrize("mode", [*MODES, "tune"])
@pytest.mark.parametrize("device", ["xpu", "cpu"])
def test_every_mode_refuses_a_misspelt_option_with_the_name_that_was_meant(
    mode: str, device: str, xpu: torch.device, no_trackers: None, best: str
) -> None:
    method = getattr(YOLO(best), mode)
    with pytest.raises(UnknownOptionError, match="Did you mean xpu_pin_memory") as caught:
        method(device=device, xpu_pin_memroy=False)
    assert caught.value.suggestions[0] == "xpu_pin_memory"
    with pytest.raises(OptionValueError, match="xpu_pin_memory='perhaps'"):
        method(device=device, xpu_pin_memory="perhaps")


@pytest.mark.xpu_profile("none")
def test_options_are_taken_and_checked_where_there_is_no_xpu(
    xpu: torch.device, choose: Choose, best: str, image: str
) -> None:
    assert type(choose(xpu_pin_memory=False)) is DetectionTrainer
    assert type(choose(trainer=DetectionTrainer, xpu_pin_memory=False)) is DetectionTrainer
    assert len(YOLO(best).predict(image, imgsz=32, xpu_pin_memory=False)) == 1
    for call in (YOLO("yolo11n.yaml").train, YOLO(best).predict):
        with pytest.raises(UnknownOptionError):
            call(xpu_pin_memroy=False)


def test_options_in_a_configuration_file_count_too(xpu: torch.device, choose: Choose) -> None:
    Path("mine.yaml").write_text("xpu_pin_memory: false\nepochs: 7\n")
    trainer = choose(cfg="mine.yaml")
    assert trainer.args.epochs == 7
    assert trainer.xpu.options == options(pin_memory=False)


# The environment


@pytest.mark.parametrize("mode", ["train", "val", "predict"])
def test_a_variable_that_nobody_reads_is_reported_once_a_process(
    mode: str,
    xpu: torch.device,
    data: TrainingData,
    best: str,
    image: str,
    monkeypatch: pytest.MonkeyPatch,
    log: list[logging.LogRecord],
) -> None:
    monkeypatch.setenv("YOLO_XPU_PREFTCH", "0")
    for _ in range(2):
        MODES[mode](YOLO(best), data("detect"), image)
    (line,) = messages(log)
    assert "YOLO_XPU_PREFTCH is set, but has no effect" in line
    assert "Did you mean YOLO_XPU_PREFETCH?" in line


@pytest.mark.parametrize("mode", ["train", "val", "predict"])
def test_a_bad_value_is_refused_before_any_data_is_looked_for(
    mode: str, xpu: torch.device, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_XPU_FAST_NMS", "perhaps")
    with pytest.raises(OptionValueError, match="YOLO_XPU_FAST_NMS='perhaps'"):
        MODES[mode](YOLO(best), "does-not-exist.yaml", "does-not-exist.png")


BAD = {
    "YOLO_XPU_AMP": "fp8",
    "YOLO_XPU_CHANNELS_LAST": "maybe",
    "YOLO_XPU_HOST_METRICS": "maybe",
    "YOLO_XPU_FAST_NMS": "perhaps",
    "YOLO_XPU_PLUGINS": "-nobodys",
    "YOLO_XPU_PREFETCH": "lots",
    "YOLO_XPU_PREFTCH": "0",
}


@pytest.mark.parametrize("profile", ["arc-b580", "none"])
def test_on_the_cpu_the_environment_is_not_read(
    profile: str,
    data: TrainingData,
    best: str,
    image: str,
    monkeypatch: pytest.MonkeyPatch,
    log: list[logging.LogRecord],
) -> None:
    for variable, value in BAD.items():
        monkeypatch.setenv(variable, value)
    with xpu_simulator.use_profile(profile):
        for mode in ("val", "predict"):
            MODES[mode](YOLO(best), data("detect"), image, device="cpu")
        train(YOLO("yolo11n.yaml"), data=data("detect"), device="cpu", val=True, project=os.getcwd())
    assert [line for line in messages(log) if "nobodys" not in line] == []


# The command line


def yolo(mode: str, **given: Any) -> None:
    """Run `yolo`, in this process."""
    entrypoint(" ".join(["yolo", mode, *(f"{key}={value}" for key, value in given.items())]))


@pytest.mark.parametrize("mode", MODES)
def test_the_command_line_refuses_a_misspelt_option_in_every_mode(
    mode: str, xpu: torch.device, no_trackers: None, best: str
) -> None:
    with pytest.raises(UnknownOptionError, match="Did you mean xpu_non_blocking"):
        yolo(mode, model=best, source="x", format="torchscript", xpu_nonblocking=1)


@pytest.mark.parametrize("mode", ["val", "predict", "track", "export", "benchmark"])
def test_the_command_line_takes_the_options_in_every_mode(
    mode: str, xpu: torch.device, no_trackers: None, data: TrainingData, best: str, image: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": best, "imgsz": 32}
    if mode in ("val", "benchmark"):
        given |= {"data": data("detect"), "project": tmp_path}
    if mode in ("predict", "track"):
        given |= {"source": image, "save": False}
    if mode in ("export", "benchmark"):
        given |= {"format": "torchscript" if mode == "export" else "-"}
    yolo(mode, **given, xpu_pin_memory="False")


@pytest.mark.parametrize("mode", ["val", "predict", "export"])
def test_a_trainer_is_an_argument_of_training_only(mode: str, xpu: torch.device, best: str, image: str) -> None:
    with pytest.raises(SyntaxError, match="trainer"):
        yolo(mode, model=best, source=image, trainer="xpu")


def test_other_unknown_arguments_are_ultralytics_to_refuse(xpu: torch.device) -> None:
    with pytest.raises(SyntaxError, match="epocs"):
        yolo("train", model="yolo11n.yaml", epocs=3)
    with pytest.raises(SyntaxError, match="xpu_pin_memory"):
        entrypoint("yolo train model=yolo11n.yaml xpu_pin_memory")


def test_the_command_yolo_trains_by_name_with_options(data: TrainingData, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()", "train"]
    given = {"model": "yolo11n.yaml", "data": data("detect"), "epochs": 1, "imgsz": 32, "workers": 0, "plots": False}
    given |= {"project": tmp_path, "name": "run", "trainer": "xpu", "amp": "fp16", "xpu_pin_memory": False}
    done = subprocess.run(
        [*command, *(f"{key}={value}" for key, value in given.items())],
        env={**os.environ, "XPU_SIMULATOR": "arc-b580"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    saved = checkpoint(tmp_path / "run" / "weights" / "last.pt")
    assert saved["xpu_trainer"]["precision"] == "fp16"
    assert saved["xpu_trainer"]["options"]["pin_memory"] is False
    for names in (YAML.load(tmp_path / "run" / "args.yaml"), saved["train_args"]):
        assert not {"trainer", "xpu_pin_memory"} & set(names)


# The same script as pip writes for `yolo` and `ultralytics`.
CONSOLE_SCRIPT = """
import sys
from {module} import {name}
if __name__ == "__main__":
    sys.exit({name}())
"""


def run_console_script(folder: Path, script: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of Ultralytics' commands in a process of its own."""
    (entry,) = distribution("ultralytics").entry_points.select(group="console_scripts", name=script)
    module, name = entry.value.split(":")
    (folder / script).write_text(CONSOLE_SCRIPT.format(module=module, name=name))
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", **variables}
    command = [sys.executable, str(folder / script), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


REFUSED = {
    "an option": ("train", "xpu_chanels_last=False", "There is no option 'xpu_chanels_last'. Did you mean"),
    "a value": ("predict", "xpu_fast_nms=perhaps", "xpu_fast_nms='perhaps' is invalid"),
    "a device": ("val", "device=xpu:7", "Asked for xpu:7, but this process sees 1 XPU"),
    "a trainer": ("train", "trainer=xpuu", "trainer='xpuu' is not registered"),
}


@pytest.mark.parametrize("script", ["yolo", "ultralytics"])
@pytest.mark.parametrize("refused", REFUSED)
def test_the_command_ends_with_one_line_where_we_refuse_to_go_on(script: str, refused: str, tmp_path: Path) -> None:
    mode, word, said = REFUSED[refused]
    done = run_console_script(tmp_path, script, mode, "model=yolo11n.yaml", "data=coco8.yaml", word)
    assert done.returncode == (69 if refused == "a device" else 2), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"yolo: error: {said}")


@pytest.mark.parametrize(("value", "shown"), [("true", True), (" ON", True), ("false", False)])
def test_the_command_shows_the_traceback_where_the_user_asks_for_more_words(
    value: str, shown: bool, tmp_path: Path
) -> None:
    words = ("train", "model=yolo11n.yaml", "trainer=xpuu")
    done = run_console_script(tmp_path, "yolo", *words, YOLO_VERBOSE=value)
    assert done.returncode == 2
    assert ("Traceback" in done.stderr) is shown
    assert "trainer='xpuu' is not registered" in done.stderr.splitlines()[-1]


def test_the_command_shows_the_traceback_of_any_other_error(tmp_path: Path) -> None:
    done = run_console_script(tmp_path, "yolo", "train", "model=yolo11n.yaml", "epocs=3")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


# Devices of every form


FORMS: list[tuple[Any, int | None]] = [
    (None, 0),
    ("xpu", 0),
    ("xpu:1", 1),
    ("XPU:1", 1),
    (0, 0),
    (1, 1),
    ("1", 1),
    (-1, None),  # an idle one
    ("-1", None),
    (torch.device("xpu"), 0),
    (torch.device("xpu", 1), 1),
    (["xpu:1"], 1),
]


@pytest.mark.xpu_profile("max-1550")
@pytest.mark.parametrize(("form", "index"), FORMS, ids=[repr(form) for form, _ in FORMS])
def test_every_form_of_a_device_reaches_training_validation_and_prediction(
    form: Any, index: int | None, xpu: torch.device, choose: Choose, data: TrainingData, best: str, image: str
) -> None:
    def meant(device: torch.device) -> bool:
        torch.xpu.set_device(0)  # each run makes its device the current one
        return device.type == "xpu" and index in (None, device.index)

    def stop(validator: Any) -> None:
        seen.append(validator.device)
        raise Stopped

    seen: list[torch.device] = []
    torch.xpu.set_device(0)
    assert meant(choose(device=form).device)
    model = YOLO(best)
    model.add_callback("on_val_start", stop)
    with pytest.raises(Stopped):
        model.val(data=data("detect"), imgsz=32, workers=0, plots=False, device=form)
    assert meant(seen[0])
    (result,) = YOLO(best).predict(image, imgsz=32, device=form, conf=0.0001)
    assert meant(result.boxes.data.device)


@pytest.mark.parametrize("mode", ["train", "val", "predict"])
@pytest.mark.parametrize(
    ("form", "error"), [("xpu:7", NoSuchXPUError), (7, NoSuchXPUError), ("xpuu", UnknownDeviceError)]
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    mode: str, form: Any, error: type[Exception], xpu: torch.device, data: TrainingData, best: str, image: str
) -> None:
    with pytest.raises(error, match=r"1 XPU .*B580"):
        MODES[mode](YOLO(best), data("detect"), image, device=form)


def test_the_cpu_is_the_cpu_in_every_mode(xpu: torch.device, data: TrainingData, best: str, image: str) -> None:
    with xpu_simulator.count() as counts:
        for mode in ("val", "predict", "export"):
            MODES[mode](YOLO(best), data("detect"), image, device="cpu")
    assert counts.launches == 0


# Children: tuning, and a list of data sets


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give child processes the simulated device; see that what they are told is in their environment only."""
    monkeypatch.setenv("XPU_SIMULATOR", "arc-b580")
    yield
    # Ultralytics and others change their own variables, for reproducible runs and on import.
    assert not [name for name in os.environ if name.startswith("YOLO_XPU_")]


SMALL = {"epochs": 1, "imgsz": 32, "batch": 4, "workers": 0, "plots": False}


def weights(folder: Path) -> list[dict[str, Any]]:
    return [checkpoint(path) for path in sorted(folder.rglob("last.pt"))]


def test_tuning_reaches_the_trainings_that_it_starts(
    xpu: torch.device, children: None, data: TrainingData, tmp_path: Path, log: list[logging.LogRecord]
) -> None:
    YOLO("yolo11n.yaml").tune(
        data=data("detect"),
        iterations=1,
        trainer="xpu",
        amp="fp16",
        xpu_pin_memory=False,
        project=str(tmp_path / "tuned"),
        **SMALL,
    )
    assert messages(log) == []
    found = weights(tmp_path / "tuned")  # of the iteration, and a copy for being the best
    assert found
    for saved in found:
        assert saved["xpu_trainer"]["precision"] == "fp16"
        assert saved["xpu_trainer"]["options"] == options(pin_memory=False).as_dict()
        assert not [name for name in saved["train_args"] if name == "trainer" or name.startswith("xpu_")]


def test_tuning_takes_a_trainer_by_its_name_only(xpu: torch.device) -> None:
    with pytest.raises(UnknownTrainerError, match="trainer='xpu'"):
        YOLO("yolo11n.yaml").tune(trainer=XPUDetectionTrainer, iterations=1)


@pytest.fixture
def two(data: TrainingData, tmp_path: Path) -> list[str]:
    """Two data sets of different names."""
    files = []
    for name in ("first", "second"):
        (tmp_path / f"{name}.yaml").write_text(Path(data("detect")).read_text())
        files.append(str(tmp_path / f"{name}.yaml"))
    return files


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [None, "xpu", XPUDetectionTrainer], ids=["None", "by name", "by class"])
def test_a_list_of_data_sets_is_trained_on_the_xpu_with_its_options(
    trainer: Any, xpu: torch.device, children: None, two: list[str], tmp_path: Path
) -> None:
    model = YOLO("yolo11n.yaml")
    given = {"amp": "fp16", "xpu_pin_memory": False, "project": str(tmp_path / "runs"), **SMALL}
    metrics = model.train(data=two, trainer=trainer, **given)
    assert set(metrics) == {"first", "second"}
    assert all(metrics.values())
    runs = weights(tmp_path / "runs")
    assert len(runs) == 2
    for saved in runs:
        assert saved["xpu_trainer"]["device"] == "xpu:0"
        assert saved["xpu_trainer"]["precision"] == "fp16"
        assert saved["xpu_trainer"]["options"] == options(pin_memory=False).as_dict()
        assert not [name for name in saved["train_args"] if name == "trainer" or name.startswith("xpu_")]


def test_a_list_of_data_sets_with_a_callback_keeps_its_options(
    xpu: torch.device, two: list[str], tmp_path: Path
) -> None:
    """With callbacks Ultralytics trains in this process, so that a child's environment reaches nobody."""
    seen: list[Options] = []

    def look(trainer: Any) -> None:
        seen.append(trainer.xpu.options)
        raise Stopped

    model = YOLO("yolo11n.yaml")
    model.add_callback("on_pretrain_routine_start", look)
    model.train(data=two, xpu_pin_memory=False, project=str(tmp_path), **SMALL)
    assert seen == [options(pin_memory=False)] * 2


# Trainers of others


class MyTrainer(DetectionTrainer):
    """Somebody's trainer, which changes something and knows nothing of XPUs."""

    def plot_training_labels(self) -> None:
        """Draw nothing."""

    def set_model_attributes(self) -> None:
        """Note that it was asked."""
        super().set_model_attributes()
        self.was_asked = True


class Mine(XPUTrainer, MyTrainer):
    """The same, with what this package does."""


def test_a_trainer_that_is_not_ours_trains_on_the_xpu_and_what_it_goes_without_is_said_in_one_line(
    xpu: torch.device, data: TrainingData, tmp_path: Path, log: list[logging.LogRecord]
) -> None:
    model = YOLO("yolo11n.yaml")
    model.train(trainer=MyTrainer, data=data("detect"), project=str(tmp_path), **SMALL)
    assert type(model.trainer) is MyTrainer
    assert model.trainer.was_asked
    assert model.trainer.device == xpu
    assert "xpu_trainer" not in checkpoint(model.trainer.last)
    (line,) = messages(log)
    assert "\n" not in line
    assert "class MyTrainer(XPUTrainer, …)" in line
    for policy in ("checkpoint", "dataloader", "memory", "precision"):
        assert policy in line


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=repr)
def test_on_the_cpu_a_trainer_that_is_not_ours_goes_without_nothing(
    device: Any, xpu: torch.device, choose: Choose, log: list[logging.LogRecord]
) -> None:
    assert choose(trainer=MyTrainer, device=device).device == torch.device("cpu")
    assert messages(log) == []


def test_options_for_a_trainer_that_is_not_ours_are_said_to_have_no_effect(
    xpu: torch.device, choose: Choose, log: list[logging.LogRecord]
) -> None:
    assert type(choose(trainer=MyTrainer, xpu_pin_memory=False)) is MyTrainer
    assert any("xpu_pin_memory" in line for line in messages(log))


def test_the_mixin_makes_anybodys_trainer_one_of_ours(
    xpu: torch.device, data: TrainingData, tmp_path: Path, log: list[logging.LogRecord]
) -> None:
    model = YOLO("yolo11n.yaml")
    model.train(trainer=Mine, data=data("detect"), project=str(tmp_path), xpu_non_blocking=False, **SMALL)
    assert type(model.trainer) is Mine
    assert model.trainer.was_asked
    assert model.trainer.xpu.precision.name == "bf16"
    saved = checkpoint(model.trainer.last)
    assert saved["xpu_trainer"]["options"] == options(non_blocking=False).as_dict()
    assert messages(log) == []


def test_a_trainer_for_another_task_is_the_users_choice(xpu: torch.device, choose: Choose) -> None:
    class Other(XPUTrainer, ClassificationTrainer):
        pass

    assert type(choose("yolo11n-cls.yaml", "classify", trainer=Other)) is Other
