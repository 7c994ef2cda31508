"""A checkpoint of a run on an XPU is an Ultralytics checkpoint, and ours to resume."""

from __future__ import annotations

import json
import logging
import os
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import strip_optimizer

import xpu_simulator
from yolo_xpu_trainer import XPUDetectionTrainer

from ..conftest import TrainingData
from ..options import options


class InterruptedRunError(Exception):
    """Ends a run as a user or a power cut would."""


def interrupt(trainer: Any) -> None:
    raise InterruptedRunError


def build(trainer: type, data: str, project: Path, **more: Any) -> Any:
    given = {"model": "yolo11n.yaml", "data": data, "epochs": 3, "imgsz": 32, "batch": 4, "plots": False, "workers": 0}
    return trainer(overrides={**given, "project": str(project), **more})


def begin(trainer: type, data: str, project: Path, **more: Any) -> Any:
    """Train the first of three epochs, and return the trainer."""
    run = build(trainer, data, project, **more)
    run.add_callback("on_fit_epoch_end", interrupt)
    with pytest.raises(InterruptedRunError):
        run.train()
    return run


def load(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, map_location="cpu", weights_only=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def plain(data: TrainingData, folder: Path) -> Path:
    """What Ultralytics itself leaves behind when it is interrupted on the CPU."""
    with xpu_simulator.use_profile("none"):
        return Path(begin(DetectionTrainer, data("detect"), folder, device="cpu").last)


@pytest.fixture(scope="module")
def bf16(data: TrainingData, folder: Path) -> Path:
    """What an interrupted run on the second of two data-centre GPUs leaves behind."""
    with xpu_simulator.use_profile("max-1550"):
        off = {"xpu_pin_memory": False, "xpu_non_blocking": False}
        run = begin(XPUDetectionTrainer, data("detect"), folder, device="xpu:1", **off)
        assert run.xpu.precision.name == "bf16"
        return Path(run.last)


@pytest.fixture(scope="module")
def fp16(data: TrainingData, folder: Path) -> Path:
    """What an interrupted run on a laptop leaves behind, with a scale that gradients at this size don't overflow."""

    def scale(trainer: Any) -> None:
        trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 256.0})

    with xpu_simulator.use_profile("core-ultra-155h"):
        run = build(XPUDetectionTrainer, data("detect"), folder, amp="fp16", imgsz=64)
        run.add_callback("on_train_start", scale)
        run.add_callback("on_fit_epoch_end", interrupt)
        with pytest.raises(InterruptedRunError):
            run.train()
        return Path(run.last)


@pytest.fixture(scope="module")
def fp32(data: TrainingData, folder: Path) -> Path:
    """What an interrupted fp32 run leaves behind."""
    with xpu_simulator.use_profile("arc-b580"):
        return Path(begin(XPUDetectionTrainer, data("detect"), folder, amp=False).last)


@pytest.fixture(params=["bf16", "fp16", "fp32"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """Each of the three."""
    return Path(request.getfixturevalue(request.param))


# What is in the file


def pickled_globals(path: Path) -> set[str]:
    """Return every class and function that a checkpoint's pickles name."""
    names: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if not member.endswith(".pkl"):
                continue
            strings: list[str] = []
            for opcode, argument, _ in pickletools.genops(archive.read(member)):
                if opcode.name == "GLOBAL":
                    names.add(str(argument))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(" ".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    return names


def test_no_class_of_ours_is_pickled(checkpoint: Path) -> None:
    names = pickled_globals(checkpoint)
    assert "ultralytics.nn.tasks DetectionModel" in names
    assert not [name for name in names if "xpu" in name.lower()]


def test_every_tensor_loads_where_there_is_no_xpu(checkpoint: Path) -> None:
    devices: set[torch.device] = set()

    def visit(value: object) -> None:
        if isinstance(value, torch.Tensor):
            devices.add(value.device)
        elif isinstance(value, torch.nn.Module):
            visit(list(value.state_dict().values()))
        elif isinstance(value, dict):
            visit(list(value.values()))
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)

    visit(load(checkpoint))
    assert devices == {torch.device("cpu")}


def test_its_arguments_are_those_of_a_plain_run(checkpoint: Path, plain: Path) -> None:
    ours, theirs = load(checkpoint)["train_args"], load(plain)["train_args"]
    assert list(ours) == list(theirs)
    assert ours["device"] is None
    assert isinstance(ours["amp"], bool)
    for name in ours:
        assert type(ours[name]) is type(theirs[name]) or name == "device"
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing <= {"device", "amp", "name", "save_dir", "workers", "imgsz"}


def test_the_models_own_arguments_name_no_device_either(checkpoint: Path) -> None:
    arguments = vars(load(checkpoint)["ema"].args)
    assert "xpu" not in str(arguments.get("device"))
    assert not [name for name in arguments if name.startswith("xpu")]


def test_its_keys_are_those_of_a_plain_run_and_one_of_ours(checkpoint: Path, plain: Path) -> None:
    assert set(load(checkpoint)) - set(load(plain)) == {"xpu_trainer"}


BUILTIN = (dict, list, str, int, float, bool, type(None))


def leaves(value: object) -> Iterator[object]:
    yield value
    if isinstance(value, dict):
        for k, v in value.items():
            yield from leaves(k)
            yield from leaves(v)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)


def test_what_we_remember_is_plain_data(checkpoint: Path) -> None:
    remembered = load(checkpoint)["xpu_trainer"]
    assert all(type(leaf) in BUILTIN for leaf in leaves(remembered))
    assert json.loads(json.dumps(remembered)) == remembered


def test_we_remember_device_precision_and_options(bf16: Path, fp16: Path, fp32: Path) -> None:
    ours = load(bf16)["xpu_trainer"]
    assert (ours["device"], ours["precision"]) == ("xpu:1", "bf16")
    assert ours["options"] == options(pin_memory=False, non_blocking=False).as_dict()
    ours = load(fp16)["xpu_trainer"]
    assert (ours["device"], ours["precision"], ours["options"]) == ("xpu:0", "fp16", options().as_dict())
    assert load(fp32)["xpu_trainer"]["precision"] == "fp32"
    assert load(fp32)["train_args"]["amp"] is False


def test_what_we_remember_survives_strip_optimizer(bf16: Path, tmp_path: Path) -> None:
    strip_optimizer(bf16, s=str(tmp_path / "stripped.pt"))
    stripped = load(tmp_path / "stripped.pt")
    assert stripped["xpu_trainer"] == load(bf16)["xpu_trainer"]
    assert stripped["train_args"]["device"] is None


def test_weights_are_contiguous_as_every_release_of_ultralytics_needs_them(checkpoint: Path) -> None:
    weights = [p for p in load(checkpoint)["ema"].state_dict().values() if p.ndim == 4]
    assert weights
    assert all(p.is_contiguous() for p in weights)


def test_the_scalers_state_is_pytorchs(fp16: Path, bf16: Path) -> None:
    state = load(fp16)["scaler"]
    assert set(state) == set(torch.amp.GradScaler("cpu").state_dict())
    assert state["scale"] == 256.0
    assert load(bf16)["scaler"] == {}


@pytest.mark.xpu_hardware
def test_the_running_trainer_keeps_its_device_while_it_saves(
    xpu: torch.device, data: TrainingData, folder: Path
) -> None:
    seen = []
    trainer = build(XPUDetectionTrainer, data("detect"), folder, epochs=1)
    trainer.add_callback("on_model_save", lambda trainer: seen.append(trainer.args.device))
    trainer.train()
    assert seen == ["xpu:0"]
    for file in (trainer.last, trainer.best):
        assert load(file)["train_args"]["device"] is None
        assert load(file)["xpu_trainer"]["device"] == "xpu:0"
        assert all(p.is_contiguous() for p in load(file)["model"].state_dict().values() if p.ndim == 4)


def test_a_full_disk_leaves_the_trainer_as_it_was(
    xpu: torch.device, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    run = build(XPUDetectionTrainer, data("detect"), tmp_path)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert torch.save is full
    assert run.args.device == "xpu:0"


# Where this package isn't installed and there is no XPU

ELSEWHERE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if "yolo_xpu_trainer" in name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

import json
import torch
from pathlib import Path
from ultralytics import YOLO

checkpoint, image, data, project = sys.argv[1:]
assert not torch.xpu.is_available()
model = YOLO(checkpoint)
boxes = model.predict(image, imgsz=32, conf=0.0, max_det=5, project=project)[0].boxes
metrics = model.val(data=data, imgsz=32, workers=0, plots=False, project=project)
seen = {}
resumed = YOLO(checkpoint)

def note(trainer):
    seen.update(
        start_epoch=trainer.start_epoch,
        device=str(trainer.device),
        amp=trainer.args.amp,
        steps=sorted({float(s["step"]) for s in trainer.optimizer.state_dict()["state"].values()}),
        scaler=trainer.scaler.state_dict(),
    )

resumed.add_callback("on_pretrain_routine_end", note)
resumed.train(resume=True)
assert not [name for name in sys.modules if "yolo_xpu_trainer" in name]
seen.update(
    boxes=len(boxes),
    fitness=float(metrics.fitness),
    rows=Path(resumed.trainer.csv).read_text().strip().splitlines(),
    last=str(resumed.trainer.last),
    trainer=type(resumed.trainer).__name__,
)
Path(project, "elsewhere.json").write_text(json.dumps(seen))
"""


def copied(checkpoint: Path, target: Path) -> Path:
    """Copy an interrupted run, so that resuming it leaves the original alone."""
    state = load(checkpoint)
    state["train_args"]["save_dir"] = str(target / "run")
    weights = target / "run" / "weights"
    weights.mkdir(parents=True)
    (target / "run" / "results.csv").write_bytes((checkpoint.parent.parent / "results.csv").read_bytes())
    torch.save(state, weights / "last.pt")
    return weights / "last.pt"


@pytest.fixture(scope="module")
def elsewhere(data: TrainingData, folder: Path) -> Callable[[Path], dict[str, Any]]:
    """Load, predict, validate and resume a checkpoint in a process without this package and without an XPU."""
    done: dict[Path, dict[str, Any]] = {}

    def run(checkpoint: Path) -> dict[str, Any]:
        if checkpoint not in done:
            there = folder / f"elsewhere{len(done)}"
            image = Path(data("detect")).parent / "images" / "val" / "0.png"
            arguments = [str(copied(checkpoint, there)), str(image), data("detect"), str(there)]
            environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}  # no entry point of ours either
            process = subprocess.run(
                [sys.executable, "-c", ELSEWHERE, *arguments], env=environment, capture_output=True, text=True
            )
            assert process.returncode == 0, process.stderr
            done[checkpoint] = json.loads((there / "elsewhere.json").read_text())
        return done[checkpoint]

    return run


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_it_loads_predicts_validates_and_resumes_where_this_package_is_not(
    precision: str, request: pytest.FixtureRequest, elsewhere: Callable[[Path], dict[str, Any]]
) -> None:
    checkpoint = request.getfixturevalue(precision)
    there = elsewhere(checkpoint)
    assert there["trainer"] == "DetectionTrainer"
    assert there["device"] == "cpu"
    assert there["start_epoch"] == 1
    assert there["boxes"] == 5
    assert 0 <= there["fitness"] <= 1
    assert there["steps"]
    assert there["steps"] == sorted({float(s["step"]) for s in load(checkpoint)["optimizer"]["state"].values()})
    assert len(there["rows"]) == 1 + 3
    assert there["amp"] is (precision != "fp32")
    assert Path(there["last"]).exists()


# Where it is


def resume(checkpoint: Path, target: Path, whole: bool = False, **more: Any) -> tuple[Any, dict[str, Any]]:
    """Resume a copy of a checkpoint; return the trainer, and what was restored."""
    restored: dict[str, Any] = {}

    def note(trainer: Any) -> None:
        restored.update(
            optimizer=deepcopy(trainer.optimizer.state_dict()),
            scaler=trainer.scaler.state_dict(),
            weights=deepcopy(trainer.ema.ema.state_dict()),
            updates=trainer.ema.updates,
            start_epoch=trainer.start_epoch,
        )
        if not whole:
            raise InterruptedRunError

    model = YOLO(str(copied(checkpoint, target)))
    model.add_callback("on_pretrain_routine_end", note)
    given = {"trainer": XPUDetectionTrainer, "resume": True, **more}
    with nullcontext() if whole else pytest.raises(InterruptedRunError):
        model.train(**given)
    return model.trainer, restored


@pytest.mark.xpu_profile("max-1550")
def test_resuming_restores_device_precision_and_options(xpu: torch.device, bf16: Path, tmp_path: Path) -> None:
    trainer, _ = resume(bf16, tmp_path)
    assert trainer.device == torch.device("xpu", 1)
    assert trainer.xpu.precision.name == "bf16"
    assert trainer.xpu.options == options(pin_memory=False, non_blocking=False)


def test_resuming_restores_a_precision_that_the_device_would_not_choose(
    xpu: torch.device, fp16: Path, tmp_path: Path
) -> None:
    trainer, _ = resume(fp16, tmp_path)
    assert trainer.xpu.precision.name == "fp16"
    assert trainer.scaler.is_enabled()


def test_resuming_restores_fp32(xpu: torch.device, fp32: Path, tmp_path: Path) -> None:
    trainer, _ = resume(fp32, tmp_path)
    assert trainer.xpu.precision.name == "fp32"
    assert trainer.amp is False


@pytest.mark.xpu_profile("core-ultra-155h")
def test_resuming_keeps_the_scalers_scale(xpu: torch.device, fp16: Path, tmp_path: Path) -> None:
    _, restored = resume(fp16, tmp_path)
    assert restored["scaler"] == load(fp16)["scaler"]
    assert restored["scaler"]["scale"] == 256.0


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_resuming_restores_weights_and_the_optimizers_state(
    xpu: torch.device, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(precision)
    saved = load(checkpoint)
    _, restored = resume(checkpoint, tmp_path, device="xpu:0")
    assert restored["start_epoch"] == 1
    assert restored["updates"] == saved["updates"] > 0
    state = restored["optimizer"]["state"]
    assert state
    assert state.keys() == saved["optimizer"]["state"].keys()
    for number, values in saved["optimizer"]["state"].items():
        for name, value in values.items():
            torch.testing.assert_close(state[number][name].float().cpu(), value.float(), rtol=0, atol=0)
            assert state[number][name].device.type == "xpu"  # as a fused optimizer has it, counter and all
    for name, value in saved["ema"].float().state_dict().items():
        torch.testing.assert_close(restored["weights"][name].cpu(), value, rtol=0, atol=0)


def test_a_resumed_run_goes_on_as_upstreams_own_does(
    xpu: torch.device, fp32: Path, elsewhere: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    # Not as an uninterrupted run would: Ultralytics resumes from the averaged weights, in half precision.
    def losses(rows: list[str]) -> torch.Tensor:
        columns = [i for i, name in enumerate(rows[0].split(",")) if "_loss" in name]
        assert len(columns) == 6
        return torch.tensor([[float(row.split(",")[i]) for i in columns] for row in rows[1:]])

    there = elsewhere(fp32)
    trainer, _ = resume(fp32, tmp_path, whole=True)
    assert trainer.device.type == "xpu"
    here = Path(trainer.csv).read_text().strip().splitlines()
    assert len(here) == 1 + 3
    torch.testing.assert_close(losses(here), losses(there["rows"]), rtol=1e-3, atol=1e-4)


@pytest.mark.xpu_profile("max-1550")
def test_explicit_arguments_win_over_what_is_remembered(xpu: torch.device, bf16: Path, tmp_path: Path) -> None:
    trainer, _ = resume(bf16, tmp_path, device="xpu:0", amp="fp16", xpu_pin_memory=True)
    assert trainer.device == torch.device("xpu", 0)
    assert trainer.xpu.precision.name == "fp16"
    assert trainer.xpu.options == options(pin_memory=True, non_blocking=False)


def test_another_precision_can_be_asked_for_when_resuming_fp16(xpu: torch.device, fp16: Path, tmp_path: Path) -> None:
    trainer, _ = resume(fp16, tmp_path, amp="bf16")
    assert trainer.xpu.precision.name == "bf16"
    assert not trainer.scaler.is_enabled()


@pytest.mark.parametrize(("precision", "amp", "then"), [("fp16", False, "fp32"), ("fp32", True, "bf16")])
def test_amp_can_be_switched_when_resuming(
    xpu: torch.device, precision: str, amp: bool, then: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    trainer, _ = resume(request.getfixturevalue(precision), tmp_path, amp=amp)
    assert trainer.xpu.precision.name == then
    assert trainer.amp is amp


def test_the_environment_wins_over_what_is_remembered(
    xpu: torch.device, bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_XPU_PIN_MEMORY", "1")
    monkeypatch.setenv("YOLO_XPU_AMP", "fp16")
    trainer, _ = resume(bf16, tmp_path, device="xpu:0")
    assert trainer.xpu.options == options(pin_memory=True, non_blocking=False)
    assert trainer.xpu.precision.name == "fp16"


def about_devices(log: list[logging.LogRecord]) -> list[str]:
    return [r.getMessage() for r in log if r.levelno >= logging.WARNING and "xpu:1" in r.getMessage()]


def test_a_device_that_is_gone_is_one_warning_and_the_run_goes_on(
    xpu: torch.device, bf16: Path, tmp_path: Path, log: list[logging.LogRecord]
) -> None:
    trainer, restored = resume(bf16, tmp_path)
    assert trainer.device == torch.device("xpu", 0)
    assert trainer.xpu.precision.name == "bf16"
    assert restored["start_epoch"] == 1
    (warning,) = about_devices(log)
    assert "1 XPU (xpu:0 Intel Arc B580 Graphics)" in warning


@pytest.mark.xpu_profile("none")
def test_resuming_where_no_xpu_is_left_goes_on_on_the_cpu_after_one_warning(
    xpu: torch.device, bf16: Path, tmp_path: Path, log: list[logging.LogRecord]
) -> None:
    trainer, restored = resume(bf16, tmp_path)
    assert trainer.device == torch.device("cpu")
    assert trainer.xpu is None
    assert restored["start_epoch"] == 1
    warnings = [r.getMessage() for r in log if r.levelno >= logging.WARNING and "XPU" in r.getMessage()]
    assert len(warnings) == 1, warnings
    assert "xpu:1" in warnings[0]


def test_a_plain_checkpoint_is_resumed_on_the_xpu(xpu: torch.device, plain: Path, tmp_path: Path) -> None:
    trainer, restored = resume(plain, tmp_path, device="xpu")
    assert trainer.device == torch.device("xpu", 0)
    assert trainer.xpu.precision.name == "bf16"
    assert restored["start_epoch"] == 1


def test_a_resumed_run_saves_what_it_runs_with_now(xpu: torch.device, bf16: Path, tmp_path: Path) -> None:
    trainer, _ = resume(bf16, tmp_path, whole=True, xpu_pin_memory=True, amp="fp16")
    remembered = load(trainer.last)["xpu_trainer"]
    assert (remembered["device"], remembered["precision"]) == ("xpu:0", "fp16")
    assert remembered["options"] == options(pin_memory=True, non_blocking=False).as_dict()
    assert load(trainer.last)["epoch"] == -1
