"""What `device` means to a trainer of ours, with and without an XPU, and what is said when it can't be met."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ultralytics.models.yolo.detect import DetectionTrainer

import xpu_simulator
from yolo_xpu_trainer import XPUDetectionTrainer, XPUTrainer, devices
from yolo_xpu_trainer.errors import (
    DeviceError,
    DuplicateDeviceError,
    NoSuchXPUError,
    NoXCCLError,
    NoXPUError,
    OptionValueError,
    UnknownDeviceError,
    WrongBuildError,
    XPUTrainerError,
)
from yolo_xpu_trainer.policies import precision
from yolo_xpu_trainer.versions import knows_accelerators

from ..conftest import TrainingData

Build = Callable[..., Any]

no_xpu = pytest.mark.xpu_profile("none")
two_xpus = pytest.mark.xpu_profile("max-1550")


@pytest.fixture
def build(xpu: torch.device, data: TrainingData, tmp_path: Path) -> Build:
    """Return a function that makes a trainer, up to the point where training would begin."""

    def make(device: object = None, trainer: type = XPUDetectionTrainer, **more: Any) -> Any:
        given = {"model": "yolo11n.yaml", "data": data("detect"), "device": device, "imgsz": 32}
        return trainer(overrides={**given, "project": str(tmp_path), **more})

    return make


@pytest.fixture
def wrong_build(xpu: torch.device) -> Iterator[None]:
    """Let PyTorch be one that was built without XPU support, until the device is taken down."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.xpu, "_is_compiled", lambda: False)
        patched.setattr(torch.xpu, "device_count", lambda: 0)
        yield


@pytest.fixture
def miscounted(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that lets PyTorch count one XPU more until it is initialized, and see so many from then on.

    torch/xpu/__init__.py, `device_count`: it counts by Sysman before, which ONEAPI_DEVICE_SELECTOR doesn't concern.
    """

    def let(seen: int) -> None:
        initialized: list[bool] = []

        def init() -> None:
            if not seen:
                raise RuntimeError("No XPU devices are available.")
            initialized.append(True)

        monkeypatch.setattr(torch.xpu, "init", init)
        monkeypatch.setattr(torch.xpu, "device_count", lambda: seen if initialized else seen + 1)

    return let


@pytest.fixture
def with_xccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyTorch have XCCL, as its XPU builds do since 2.8."""
    monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: True, raising=False)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be a CUDA device too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def warnings_in(records: list[logging.LogRecord]) -> list[str]:
    return [r.getMessage() for r in records if r.levelno >= logging.WARNING and "XPU" in r.getMessage()]


# With an XPU


@pytest.mark.xpu_hardware
@pytest.mark.parametrize(
    "asked",
    [None, "", "xpu", "XPU", "xpu:0", "XPU:0", " xpu:0 ", torch.device("xpu"), torch.device("xpu", 0), ["xpu:0"]],
    ids=repr,
)
def test_an_xpu_is_chosen_when_asked_for_or_when_nothing_is(build: Build, asked: object) -> None:
    trainer = build(asked)
    assert trainer.device == torch.device("xpu", 0)
    assert trainer.xpu.indices == (0,)
    assert trainer.xpu.device.device == trainer.device
    assert trainer.args.device == "xpu:0"
    assert not trainer.ddp


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("asked", [0, "0", -1, "-1", (0,), [0]], ids=repr)
def test_an_index_means_an_xpu_where_there_is_no_cuda(build: Build, asked: object) -> None:
    assert build(asked).device == torch.device("xpu", 0)


@two_xpus
@pytest.mark.parametrize("asked", ["xpu:1", "XPU:1", torch.device("xpu", 1), 1, "1", ["xpu:1"], (1,)], ids=repr)
def test_the_second_xpu_is_chosen_by_any_form_of_its_name(build: Build, asked: object) -> None:
    trainer = build(asked)
    assert trainer.device == torch.device("xpu", 1)
    assert trainer.xpu.device.index == 1
    assert torch.xpu.current_device() == 1


@two_xpus
@pytest.mark.parametrize("asked", ["xpu", None], ids=repr)
def test_xpu_without_an_index_is_the_current_one(build: Build, asked: object) -> None:
    torch.xpu.set_device(1)
    assert build(asked).device == torch.device("xpu", 1)


@two_xpus
@pytest.mark.parametrize(
    "asked",
    [
        "xpu:0,1",
        "XPU:0,1",
        "xpu:0,xpu:1",
        "xpu:0, xpu:1",
        ["xpu:0", "xpu:1"],
        ("xpu:0", "xpu:1"),
        [torch.device("xpu", 0), torch.device("xpu", 1)],
        "0,1",
        (0, 1),
        [0, 1],
    ],
    ids=repr,
)
def test_two_xpus_make_a_ddp_run(build: Build, with_xccl: None, asked: object) -> None:
    trainer = build(asked)
    assert trainer.xpu.indices == (0, 1)
    assert trainer.args.device == "xpu:0,1"
    assert trainer.ddp
    assert trainer.world_size == 2


@two_xpus
def test_the_order_of_devices_is_kept(build: Build, with_xccl: None) -> None:
    trainer = build("xpu:1,0")
    assert trainer.xpu.indices == (1, 0)
    assert trainer.args.device == "xpu:1,0"


@two_xpus
@pytest.mark.parametrize("free_memory_is_known", [True, False])
@pytest.mark.parametrize(("busy", "idle"), [(0, 1), (1, 0)])
def test_minus_one_is_the_xpu_with_the_most_free_memory(
    xpu: torch.device, busy: int, idle: int, free_memory_is_known: bool
) -> None:
    if not free_memory_is_known:
        xpu_simulator.faults.mem_get_info()
    in_use = torch.empty(8 << 30, dtype=torch.uint8, device=f"xpu:{busy}")  # more than what earlier tests left
    assert devices.resolve(-1, prefer_xpu=True) == (idle,)
    assert devices.resolve("-1,-1", prefer_xpu=True) == (idle, busy)
    assert devices.resolve(f"{busy},-1", prefer_xpu=True) == (busy, idle)
    assert in_use.device.index == busy


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("asked", ["cpu", "CPU", torch.device("cpu", 0), "mps"], ids=repr)
def test_another_device_is_upstreams_own_business(build: Build, asked: object) -> None:
    ours, theirs = build(asked), build(asked, trainer=DetectionTrainer)
    assert ours.xpu is None
    assert ours.device == theirs.device
    assert ours.args.device == theirs.args.device
    assert ours.args.amp == theirs.args.amp


# A CUDA device beside it


@pytest.mark.xpu_hardware
@pytest.mark.parametrize(("asked", "prefer_xpu"), [(None, True), ("xpu", True), ("xpu:0", False), ("XPU", False)])
def test_an_xpu_trainer_prefers_the_xpu_to_cuda(xpu: torch.device, cuda: None, asked: object, prefer_xpu: bool) -> None:
    assert devices.resolve(asked, prefer_xpu=prefer_xpu) == (0,)


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("asked", [0, "0,1", (0, 1), -1, "cuda", "cuda:0", "cuda:0,1", ["cuda:0", "cuda:1"]], ids=repr)
def test_an_index_means_cuda_where_there_is_cuda(xpu: torch.device, cuda: None, asked: object) -> None:
    assert devices.resolve(asked, prefer_xpu=True) is None


@pytest.mark.xpu_hardware
def test_a_plain_run_prefers_cuda_and_else_the_xpu(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.resolve(None, prefer_xpu=False) == (0,)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.resolve(None, prefer_xpu=False) is None


# Several XPUs, and a PyTorch whose build has no XCCL: wheels have it since 2.8 (pytorch#154963), on Linux


@pytest.fixture(params=["is_xccl_available() is False", "there is no is_xccl_available()"])
def without_xccl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "False" in request.param:
        monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: False, raising=False)
    else:
        monkeypatch.delattr(torch.distributed, "is_xccl_available", raising=False)


@two_xpus
def test_several_xpus_are_refused_where_pytorch_has_no_collectives_for_them(
    build: Build, without_xccl: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoXCCLError) as caught:
        build("xpu:0,1", data="does-not-exist.yaml")
    assert isinstance(caught.value, (DeviceError, RuntimeError))
    assert "Asked for xpu:0,1" in str(caught.value)
    assert torch.__version__ in str(caught.value)
    assert "since 2.8, on Linux" in str(caught.value)
    assert "https://download.pytorch.org/whl/xpu" in str(caught.value)
    assert build("xpu:1").device == torch.device("xpu", 1)
    assert build("xpu:0,1", xpu_gloo=True).ddp
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    with pytest.raises(NoXCCLError, match="built without gloo"):
        build("xpu:0,1", xpu_gloo=True)


@two_xpus
@pytest.mark.needs("torch.distributed.is_xccl_available")
def test_several_xpus_share_a_batch_or_say_why_they_can_not(
    build: Build, log: list[logging.LogRecord], xpu: torch.device
) -> None:
    with pytest.raises(OptionValueError, match=r"batch=1 can't be shared by 2 GPUs.*such as batch=16"):
        build("xpu:0,1", batch=1, data="does-not-exist.yaml")
    build("xpu:0,1", batch=4)
    assert not [record for record in log if "XPU: batch=" in record.getMessage()]
    build("xpu:0,1", batch=5)
    (said,) = [record for record in log if "XPU: batch=" in record.getMessage()]
    assert "each trains on 2, so that a step has 4 images" in said.getMessage()


class Gloo(DetectionTrainer):
    def _setup_ddp(self, *args: Any) -> None:
        """Set up the processes with another backend."""


class OverGloo(XPUTrainer, Gloo): ...


@two_xpus
def test_a_trainer_that_sets_up_its_processes_itself_is_left_to_it(build: Build, without_xccl: None) -> None:
    assert build("xpu:0,1", trainer=OverGloo).ddp


@two_xpus
@pytest.mark.skipif(not knows_accelerators(), reason="this Ultralytics sets up the processes by CUDA alone")
def test_so_is_one_whose_processes_a_launcher_started(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    trainer = build("xpu:0,1", trainer=OverGloo)
    assert trainer._group is None
    assert not torch.distributed.is_initialized()
    for asked in ("xpu", "xpu:1", None):
        with pytest.raises(DeviceError, match=r"each process would train alone.* such as device='xpu:0,1'"):
            build(asked, trainer=OverGloo)


# Requests that can't be met. They are refused before any data is looked for.


def refused(build: Build, asked: object) -> DeviceError:
    """Return the error of a run whose data set doesn't exist either."""
    with pytest.raises(DeviceError) as caught:
        build(asked, data="does-not-exist.yaml")
    assert isinstance(caught.value, ValueError)  # as upstream's own are
    assert isinstance(caught.value, XPUTrainerError)
    assert caught.value.requested == asked
    return caught.value


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("asked", ["gpu", "xpus", "xpu:", "xpu:a", "xpu:0;1", "cpu,xpu:0", "banana", "0,x"])
def test_an_unknown_device_is_refused_with_what_there_is(build: Build, asked: str) -> None:
    error = refused(build, asked)
    assert type(error) is UnknownDeviceError
    assert repr(asked) in str(error)
    assert error.seen in str(error)
    assert "'xpu:0'" in str(error)
    assert "'cpu'" in str(error)


@pytest.mark.parametrize("asked", ["xpu:2", 2, "2", torch.device("xpu", 2), "xpu:0,2", ["xpu:2"], (2, 0)], ids=repr)
def test_an_index_that_does_not_exist_is_refused_with_those_that_do(
    build: Build, asked: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZE_AFFINITY_MASK", "0")
    monkeypatch.delenv("ONEAPI_DEVICE_SELECTOR", raising=False)
    error = refused(build, asked)
    assert type(error) is NoSuchXPUError
    assert error.seen == "1 XPU (xpu:0 Intel Arc B580 Graphics)"
    assert str(error) == (
        "Asked for xpu:2, but this process sees 1 XPU (xpu:0 Intel Arc B580 Graphics). "
        "Use device='xpu:0', or check ZE_AFFINITY_MASK='0'."
    )


@two_xpus
def test_a_wrong_index_names_every_xpu_there_is(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZE_AFFINITY_MASK", raising=False)
    monkeypatch.delenv("ONEAPI_DEVICE_SELECTOR", raising=False)
    error = refused(build, "xpu:2")
    assert "2 XPUs (xpu:0 Intel Data Center GPU Max 1550, xpu:1 Intel Data Center GPU Max 1550)" in str(error)
    assert "MASK" not in str(error)


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("asked", [-2, "-2", "0,-3"], ids=repr)
def test_no_negative_index_but_minus_one_means_anything(build: Build, asked: object) -> None:
    assert type(refused(build, asked)) is NoSuchXPUError


def test_more_idle_xpus_than_there_are_is_refused(build: Build) -> None:
    error = refused(build, "-1,-1")
    assert type(error) is NoSuchXPUError
    assert "2 XPUs" in str(error)
    assert "1 XPU (xpu:0" in str(error)


@two_xpus
@pytest.mark.parametrize("asked", ["xpu:0,0", "xpu:1,xpu:1", [0, 0], "1,0,1", ["xpu:1", "XPU:1"]], ids=repr)
def test_a_device_named_twice_is_refused(build: Build, asked: object) -> None:
    error = refused(build, asked)
    assert type(error) is DuplicateDeviceError
    assert "twice" in str(error)
    assert repr(asked) in str(error)
    assert "2 XPUs" in str(error)


@no_xpu
@pytest.mark.parametrize("asked", ["xpu", "xpu:0", "xpu:0,1", torch.device("xpu"), ["xpu:0", "xpu:1"]], ids=repr)
def test_an_xpu_where_there_is_none_is_refused_with_the_driver_to_install(
    build: Build, asked: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZE_AFFINITY_MASK", raising=False)
    monkeypatch.delenv("ONEAPI_DEVICE_SELECTOR", raising=False)
    error = refused(build, asked)
    assert type(error) is NoXPUError
    assert "the driver shows no XPU" in error.seen
    assert error.seen in str(error)
    assert "https://dgpu-docs.intel.com" in str(error)
    assert "renderD" in str(error)
    assert "device='cpu'" in str(error)


@no_xpu
def test_in_wsl_the_driver_to_update_is_that_of_windows(
    xpu: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for mask in ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"):
        monkeypatch.delenv(mask, raising=False)
    monkeypatch.setattr(devices, "_WSL_DEVICE", str(tmp_path))
    problem = devices.why_none()
    assert problem is not None
    assert "the driver shows no XPU" in problem.seen
    assert "Windows" in problem.remedy
    assert "renderD" not in problem.remedy


@no_xpu
@pytest.mark.parametrize("mask", ["ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"])
def test_a_mask_that_hides_every_xpu_is_named(build: Build, mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZE_AFFINITY_MASK", raising=False)
    monkeypatch.delenv("ONEAPI_DEVICE_SELECTOR", raising=False)
    monkeypatch.setenv(mask, "level_zero:7")
    error = refused(build, "xpu")
    assert f"{mask}='level_zero:7'" in str(error)
    assert f"Unset {mask}" in str(error)


@no_xpu
def test_an_empty_mask_hides_nothing(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZE_AFFINITY_MASK", "")
    monkeypatch.setenv("ONEAPI_DEVICE_SELECTOR", "")
    assert "the driver shows no XPU" in str(refused(build, "xpu"))


def test_xpus_are_counted_once_they_are_initialized(
    build: Build, miscounted: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEAPI_DEVICE_SELECTOR", "level_zero:0")
    miscounted(1)
    assert len(devices.available()) == 1
    error = refused(build, "xpu:1")
    assert type(error) is NoSuchXPUError
    assert "check ONEAPI_DEVICE_SELECTOR='level_zero:0'" in str(error)


def test_a_selector_that_leaves_no_xpu_is_explained(
    miscounted: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZE_AFFINITY_MASK", raising=False)
    monkeypatch.setenv("ONEAPI_DEVICE_SELECTOR", "opencl:cpu")
    miscounted(0)
    assert devices.available() == []
    problem = devices.why_none()
    assert problem is not None
    assert "sees no XPU with ONEAPI_DEVICE_SELECTOR='opencl:cpu'" in problem.seen
    assert "level_zero:0" in problem.remedy


def test_an_xpu_that_cannot_be_initialized_is_no_missing_driver(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Cannot re-initialize XPU in forked subprocess. To use XPU with multiprocessing, you must use 'spawn'"

    def init() -> None:
        raise RuntimeError(text)

    for mask in ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"):
        monkeypatch.delenv(mask, raising=False)
    with monkeypatch.context() as patched:  # the device is initialized again when it is taken down
        patched.setattr(torch.xpu, "init", init)
        error = refused(build, "xpu")
    assert type(error) is NoXPUError
    assert text in str(error)
    assert "torch.xpu.init()" in str(error)


@pytest.mark.parametrize("asked", ["cpu", torch.device("cpu"), "cuda:0", "mps"], ids=repr)
def test_another_device_initializes_no_xpu(xpu: torch.device, asked: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "init", lambda: pytest.fail("an XPU was initialized"))
    assert devices.resolve(asked, prefer_xpu=True) is None
    assert devices.resolve(asked, prefer_xpu=False) is None
    assert devices.may_be_any()


@pytest.mark.parametrize("asked", ["xpu", "xpu:1", torch.device("xpu", 0), "xpu:0,1"], ids=repr)
def test_a_build_without_xpu_support_is_named_with_the_right_wheel(
    build: Build, wrong_build: None, asked: object
) -> None:
    error = refused(build, asked)
    assert type(error) is WrongBuildError
    assert isinstance(error, NoXPUError)
    assert torch.__version__ in str(error)
    assert "https://download.pytorch.org/whl/xpu" in str(error)


def test_a_stock_build_is_recognised_in_a_process_of_its_own() -> None:
    code = (
        "from yolo_xpu_trainer import XPUDetectionTrainer as T\n"
        "from yolo_xpu_trainer.errors import WrongBuildError\n"
        "try: T(overrides={'model': 'yolo11n.yaml', 'data': 'does-not-exist.yaml', 'device': 'xpu'})\n"
        "except WrongBuildError as error: print('refused:', error)\n"
    )
    if not xpu_simulator.is_active():
        pytest.skip("this PyTorch build supports XPUs")
    environment = {k: v for k, v in os.environ.items() if k != "XPU_SIMULATOR"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "refused: Asked for xpu, but this PyTorch" in done.stdout, done.stderr
    assert "is built without XPU support" in done.stdout


# No XPU, and none asked for by name


def test_a_wrong_build_and_nothing_asked_is_one_warning_with_the_right_wheel(
    build: Build, wrong_build: None, log: list[logging.LogRecord]
) -> None:
    assert build(None).device == torch.device("cpu")
    (warning,) = warnings_in(log)
    assert "https://download.pytorch.org/whl/xpu" in warning


@no_xpu
@pytest.mark.parametrize("asked", [0, "0", "0,1", (0, 1), "cuda:0"], ids=repr)
def test_an_index_without_an_xpu_gets_upstreams_answer(build: Build, asked: object) -> None:
    with pytest.raises(ValueError, match="Invalid CUDA") as theirs:
        build(asked, trainer=DetectionTrainer)
    with pytest.raises(ValueError, match="Invalid CUDA") as ours:
        build(asked)
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)


@no_xpu
def test_the_cpu_by_name_is_no_cause_for_a_warning(build: Build, log: list[logging.LogRecord]) -> None:
    assert build("cpu").device == torch.device("cpu")
    assert warnings_in(log) == []


# What isn't about devices


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("dataset", ["missing", "empty", "no images"])
def test_a_bad_data_set_is_upstreams_error_untouched(
    build: Build, dataset: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bad") / "data.yaml"
    if dataset == "empty":
        path.write_text("")
    elif dataset == "no images":
        (path.parent / "images").mkdir()
        path.write_text(f"path: {path.parent}\ntrain: images\nval: images\nnames: [a]\n")

    def failure(trainer: type) -> tuple[type, str]:
        with pytest.raises(Exception, match=r".") as caught:
            build("xpu", trainer=trainer, data=str(path)).train()
        return caught.type, str(caught.value)

    ours, theirs = failure(XPUDetectionTrainer), failure(DetectionTrainer)
    assert ours == theirs


# What a device is


def test_a_device_is_described_as_the_driver_reports_it(xpu: torch.device) -> None:
    (info,) = devices.available()
    assert str(info) == "xpu:0 Intel Arc B580 Graphics"
    assert info.device == xpu
    assert info.total_memory == torch.xpu.get_device_properties(0).total_memory
    assert (info.has_fp16, info.has_fp64, info.has_matrix_units, info.integrated) == (True, True, True, False)
    if hasattr(torch.xpu, "mem_get_info"):
        assert info.free_memory() == torch.xpu.mem_get_info(0)[0]


@pytest.mark.parametrize(
    ("profile", "fp64", "matrix_units", "integrated"),
    [
        pytest.param("arc-a770", False, True, False, marks=pytest.mark.xpu_profile("arc-a770")),
        pytest.param("core-ultra-155h", True, False, True, marks=pytest.mark.xpu_profile("core-ultra-155h")),
    ],
)
def test_devices_differ_in_what_they_can_do(
    xpu: torch.device, profile: str, fp64: bool, matrix_units: bool, integrated: bool
) -> None:
    info = devices.info(0)
    assert (info.has_fp64, info.has_matrix_units, info.integrated) == (fp64, matrix_units, integrated)
    if hasattr(torch.xpu, "mem_get_info"):
        assert (info.free_memory() is None) == (profile == "core-ultra-155h")


def test_properties_that_an_older_torch_does_not_know_count_as_lacking(
    xpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old:
        name, total_memory, has_fp16 = "Intel(R) Something", 1 << 30, True

    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: Old())
    monkeypatch.delattr(torch.xpu, "mem_get_info", raising=False)
    info = devices.info(0)
    assert (info.has_fp64, info.has_matrix_units, info.integrated) == (False, False, False)
    assert info.driver == "unknown"
    assert info.free_memory() is None


def test_what_ultralytics_passes_through_is_passed_on() -> None:
    for kind in ("meta", "hpu"):
        assert devices.resolve(torch.device(kind), prefer_xpu=False) is None


WORDS = st.sampled_from(["xpu", "cuda", "cpu", "mps", ":", ",", "0", "1", "7", "-1", " ", "[", "]", "None", "gpu", "٣"])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.one_of(st.lists(WORDS, max_size=6).map("".join), st.text(max_size=8), st.integers(), st.floats()))
def test_whatever_is_asked_is_a_device_of_here_or_upstreams_or_an_error_of_ours(xpu: torch.device, asked: Any) -> None:
    try:
        indices = devices.resolve(asked, prefer_xpu=True)
    except DeviceError:
        return
    assert indices is None or set(indices) <= set(range(devices.count()))


@two_xpus
def test_a_precision_that_gpus_agreed_on_is_given_up_where_one_of_them_is_wrong_in_it(
    build: Build, with_xccl: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one has matrix units, the second hasn't: fp16 is what both can, which the first wasn't asked for."""
    info = devices.info
    second = {"has_matrix_units": False}
    monkeypatch.setattr(devices, "info", lambda index: replace(info(index), **second if index else {}))
    assert build("xpu:0,1").xpu.precision.name == "fp16"
    wrong = precision._wrong

    def first_is_wrong(dtype: torch.dtype, device: devices.DeviceInfo, **more: Any) -> Any:
        return "a product differs" if dtype is torch.float16 and not device.index else wrong(dtype, device, **more)

    monkeypatch.setattr(precision, "_wrong", first_is_wrong)
    trainer = build("xpu:0,1")
    assert (trainer.xpu.precision.name, trainer.xpu.precision.reason) == ("fp32", "a product differs")
    assert trainer.args.amp is False
    assert build("xpu:1").xpu.precision.name == "fp16"
