"""AutoBatch on every GPU: the batch that it chooses, beside the memory that training with it takes."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils import remove_colorstr

import xpu_simulator
from xpu_simulator.profiles import PROFILES
from yolo_xpu_trainer import XPUDetectionTrainer, devices
from yolo_xpu_trainer.policies.autobatch import _capped

from ..options import options

pytestmark = pytest.mark.slow

MIB, GIB = 1 << 20, 1 << 30
SEGMENT = 20 * MIB  # what PyTorch's allocator asks the driver for at a time, where it is asked for less than 10 MiB
CAPACITY = 320 * MIB

Small = Callable[..., None]


@pytest.fixture
def small(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    """Return a function that makes the simulated device a GPU with little memory, so that little fills it."""
    uses = []

    def become(name: str, capacity: int = CAPACITY, **more: Any) -> None:
        profile = PROFILES[name]
        assert profile.properties is not None
        few = replace(profile, properties=replace(profile.properties, total_memory=capacity), **more)
        monkeypatch.setitem(PROFILES, "small", few)
        uses.append(xpu_simulator.use_profile("small"))
        uses[-1].__enter__()

    yield become
    for use in uses:
        use.__exit__(None, None, None)


def host(monkeypatch: pytest.MonkeyPatch, total: int, available: int) -> None:
    """Give the host so much memory, of which so much is free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=total, available=available))


@pytest.fixture
def liftable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels address more than 4 GiB, as they do since PyTorch 2.8."""
    monkeypatch.setattr(devices, "torch_release", lambda: (2, 8))


class EnoughError(Exception):
    """Ends a run after its first step, which takes as much memory as any."""


def train(data: str, **more: Any) -> tuple[int, int]:
    """Train for a step, and return the batch and the most memory that PyTorch held in it."""
    gc.collect()  # models of other tests are in cycles
    if torch.xpu.is_initialized():
        torch.xpu.empty_cache()
    model = YOLO("yolo11n.yaml")
    seen: list[tuple[int, int]] = []

    def forget_what_was_measured(trainer: Any) -> None:
        torch.xpu.empty_cache()
        torch.xpu.reset_peak_memory_stats(trainer.device)

    def look(trainer: Any) -> None:
        seen.append((trainer.batch_size, torch.xpu.max_memory_reserved(trainer.device)))
        raise EnoughError

    model.add_callback("on_train_start", forget_what_was_measured)
    model.add_callback("on_train_batch_end", look)
    given = {"epochs": 1, "imgsz": 128, "batch": -1, "plots": False, "workers": 0, "project": str(Path.cwd())}
    with pytest.raises(EnoughError):
        model.train(trainer=XPUDetectionTrainer, data=data, **{**given, **more})
    return seen[0]


def messages(log: list[Any]) -> list[str]:
    """Return what this package said of AutoBatch."""
    return [message for record in log if "XPU: AutoBatch" in (message := remove_colorstr(record.getMessage()))]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("arc-b580", {}),
        ("arc-b580", {"reports_free_memory": False}),
        ("arc-a770", {}),
        ("core-ultra-155h", {}),
        ("max-1550", {}),
    ],
    ids=["b580", "b580-that-can-not-tell", "a770", "155h", "max-1550"],
)
def test_training_takes_about_as_much_memory_as_it_should(
    small: Small, name: str, more: dict[str, Any], digits_data: str, log: list[Any]
) -> None:
    small(name, **more)
    batch, peak = train(digits_data)
    assert 0.4 * CAPACITY < peak <= 0.6 * CAPACITY + SEGMENT
    (said,) = messages(log)
    assert f"batch {batch}, for 60% of 0.3 GiB on {devices.info(0)}" in said


@pytest.mark.parametrize("amp", ["bf16", "fp16", "fp32"])
def test_a_larger_fraction_is_a_larger_batch_in_every_precision(small: Small, amp: str, digits_data: str) -> None:
    small("arc-b580")
    (batch, _), (larger, peak) = train(digits_data, amp=amp), train(digits_data, amp=amp, batch=0.8)
    assert batch < larger < 64  # as many as there are images
    assert 0.6 * CAPACITY < peak <= 0.8 * CAPACITY + SEGMENT


@pytest.mark.parametrize("reports", [True, False])
def test_memory_that_others_use_is_not_counted_on(small: Small, reports: bool, digits_data: str) -> None:
    small("max-1550", reports_free_memory=reports)
    alone, _ = train(digits_data, device="xpu:1")
    held = torch.empty(64 * MIB, dtype=torch.uint8, device="xpu:0")
    assert train(digits_data, device="xpu:1")[0] == pytest.approx(alone, rel=0.1)
    batch, peak = train(digits_data, device="xpu:0")
    assert 1 <= batch < 0.9 * alone
    assert held.nbytes < peak <= 0.6 * CAPACITY + SEGMENT


# Integrated GPUs


@pytest.mark.parametrize("reports", [True, False])
def test_an_integrated_gpu_leaves_the_host_its_reserve(
    small: Small, reports: bool, digits_data: str, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small("core-ultra-155h", 8 * GIB, reports_free_memory=reports)
    host(monkeypatch, total=24 * GIB, available=3 * GIB + 256 * MIB)
    batch, peak = train(digits_data, batch=0.8)
    assert 1 <= batch < 64
    assert 0.5 * 256 * MIB < peak <= 0.8 * (256 * MIB + 2 * SEGMENT) + SEGMENT  # the model lay there before
    assert "3.2 GiB free on the host, less 3.0 GiB kept for it" in messages(log)[0]


def test_on_a_host_without_free_memory_a_batch_is_one_image(
    small: Small, digits_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small("core-ultra-155h", 8 * GIB)
    host(monkeypatch, total=8 * GIB, available=1 * GIB)
    assert devices.info(0).available_memory().size == 0
    assert train(digits_data, fraction=0.1)[0] == 1


@pytest.mark.parametrize(
    ("name", "integrated"),
    [
        ("Intel(R) Arc(TM) Graphics", True),
        ("Intel(R) Arc(TM) 140V GPU (16GB)", True),
        ("Intel(R) Arc(TM) Pro 140T GPU", True),
        ("Intel(R) Iris(R) Xe Graphics", True),
        ("Intel(R) UHD Graphics 770", True),
        ("Intel(R) Graphics", True),
        ("Intel(R) Graphics [0x64a0]", True),  # Lunar Lake
        ("Intel(R) Graphics [0x7d67]", True),  # Arrow Lake
        ("Intel(R) Graphics [0xB080]", True),  # Panther Lake
        ("Intel(R) Graphics [0xe20b]", False),  # B580
        ("Intel(R) Graphics [0x56a0]", False),  # A770
        ("Intel(R) Arc(TM) B580 Graphics", False),
        ("Intel(R) Arc(TM) Pro B60 Graphics", False),
        ("Intel(R) Data Center GPU Max 1550", False),
    ],
)
def test_where_torch_does_not_tell_the_name_tells_an_integrated_gpu(
    xpu: torch.device, monkeypatch: pytest.MonkeyPatch, name: str, integrated: bool
) -> None:
    old = SimpleNamespace(name=name, total_memory=GIB)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: old)
    assert devices.info(0).integrated is integrated


@pytest.mark.parametrize(("device_id", "integrated"), [(0x64A0, True), (0xB640, True), (0xE223, False)])
def test_where_torch_tells_the_pci_id_it_tells_an_integrated_gpu(
    xpu: torch.device, monkeypatch: pytest.MonkeyPatch, device_id: int, integrated: bool
) -> None:
    old = SimpleNamespace(name="Intel(R) Something", total_memory=GIB, device_id=device_id)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: old)
    assert devices.info(0).integrated is integrated


# Free memory that isn't known


@pytest.fixture
def unknown(small: Small, monkeypatch: pytest.MonkeyPatch) -> devices.DeviceInfo:
    """A GPU of 8 GiB that nobody knows for an integrated one, and whose driver counts nothing as free."""
    small("arc-b580", 8 * GIB)
    monkeypatch.setattr(
        torch.xpu, "mem_get_info", lambda device=None: (0, 8 * GIB), raising=False
    )  # vLLM#49482, #53990
    return devices.info(0)


def test_nothing_free_by_the_drivers_count_is_no_figure(unknown: devices.DeviceInfo) -> None:
    assert unknown.free_memory() is None


def test_a_gpu_with_most_of_the_hosts_memory_may_share_it(
    unknown: devices.DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(monkeypatch, total=15 * GIB, available=5 * GIB)
    assert unknown.available_memory().size == 3 * GIB
    assert "free on the host" in unknown.available_memory().basis


def test_a_gpu_with_little_of_the_hosts_memory_is_taken_for_a_discrete_one(
    unknown: devices.DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(monkeypatch, total=32 * GIB, available=5 * GIB)
    assert unknown.available_memory().size == 8 * GIB - unknown.reserved_memory()


# The limit of a single allocation


@pytest.mark.parametrize(
    ("name", "limit"),
    [("arc-a770", 4 * GIB), ("core-ultra-155h", 4 * GIB), ("arc-b580", None), ("max-1550", None)],
)
def test_gpus_before_xe_hpc_and_xe2_have_the_limit(
    xpu: torch.device, liftable: None, name: str, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with xpu_simulator.use_profile(name):
        assert devices.info(0).allocation_limit == limit
        for value, lifted in (("1", True), ("0", False), ("", False)):
            monkeypatch.setenv("UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS", value)
            assert devices.info(0).allocation_limit == (None if lifted else limit)


@pytest.mark.xpu_profile("arc-a770")
@pytest.mark.parametrize(("version", "addressable"), [("2.5.1+xpu", 4 * GIB), ("2.7.1+xpu", 4 * GIB), ("2.8.0", None)])
def test_the_limit_is_lifted_only_where_kernels_address_more(
    xpu: torch.device, monkeypatch: pytest.MonkeyPatch, version: str, addressable: int | None
) -> None:
    # torch-xpu-ops, cmake/BuildFlags.cmake: -cl-intel-greater-than-4GB-buffer-required since release/2.8
    monkeypatch.setattr(torch, "__version__", version)
    said = devices.limit_of_allocations()
    assert ("UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS=1" in said) == (addressable is None)
    monkeypatch.setenv("UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS", "1")
    assert devices.info(0).allocation_limit == addressable
    if addressable:
        assert "unset UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS" in devices.limit_of_allocations()


LIMIT = 24 * MIB  # the allocator's own segments are of 20
LIMITED = {"imgsz": 224, "amp": False, "batch": 0.9, "fraction": 0.5}


@pytest.fixture
def limited(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the device a limit that a small run can reach."""
    small("arc-a770", 900 * MIB, max_allocation=LIMIT)
    monkeypatch.setattr(devices, "_ALLOCATION_LIMIT", LIMIT)


def test_no_single_allocation_reaches_the_limit(
    limited: None, liftable: None, digits_data: str, log: list[Any]
) -> None:
    given = {**LIMITED, "plots": False, "workers": 0, "epochs": 1, "project": str(Path.cwd())}
    model = YOLO("yolo11n.yaml")
    model.train(trainer=XPUDetectionTrainer, data=digits_data, **given)  # and validate
    (said,) = messages(log)
    assert "a single allocation of" in said
    assert "UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS=1" in said
    given["batch"] = model.trainer.batch_size * 3 // 2
    log.clear()
    model.train(trainer=XPUDetectionTrainer, data=digits_data, **given)
    (refused, *_) = [text for r in log if "memory ran out in validation" in (text := r.getMessage())]
    assert re.search(r"Tried to allocate [23]\d.\d\d MiB", refused)


def test_a_lifted_limit_does_not_hold(
    limited: None, liftable: None, digits_data: str, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS", "1")
    train(digits_data, **LIMITED)
    assert "a single allocation" not in messages(log)[0]


# Older releases of PyTorch and Ultralytics


def test_a_torch_that_can_not_count_its_memory_gives_ultralytics_default(
    small: Small, digits_data: str, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small("arc-b580")
    for name in ("memory_reserved", "memory_allocated", "mem_get_info"):
        monkeypatch.delattr(torch.xpu, name, raising=False)
    batches: list[int] = []
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_pretrain_routine_end", lambda trainer: batches.append(trainer.batch_size))
    given = {"epochs": 1, "imgsz": 32, "batch": -1, "plots": False, "workers": 0, "project": str(Path.cwd())}
    model.train(trainer=XPUDetectionTrainer, data=digits_data, val=False, **given)
    assert batches == [16]
    assert "can't measure" in messages(log)[0]


@pytest.mark.parametrize(
    ("chosen", "probes", "held"),
    [
        (30, [(1, 0.1), (2, 0.2), (4, 0.4), (8, 0.8)], 30),
        (16, [(1, 0.4), (2, 0.8), (4, 1.6), (8, 3.2), (16, None)], 2),  # the default, where not one image was left
        (16, [(1, 2.0), (2, 4.0)], 1),
        (40, [(1, None), (2, 0.2), (4, 0.4)], 40),  # batch normalisation of a single value
        (8, [(1, 0.1), (2, 0.2), (4, None), (8, None)], 2),
        (16, [(1, None), (2, None)], 16),
        (1, [(1, None), (2, 0.2), (4, 0.4)], 4),
        (1, [(1, None), (2, 0.2), (4, 4.0), (8, 8.0)], 2),
        (1, [(1, None), (2, 2.0)], 2),
    ],
)
def test_an_answer_that_a_probe_refutes_is_not_taken(chosen: int, probes: list[Any], held: int) -> None:
    assert _capped(chosen, probes, 1.0) == held


def test_a_training_on_the_cpu_before_does_not_end_it(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    from yolo_xpu_trainer.policies.autobatch import autobatch
    from yolo_xpu_trainer.run import Precision, Run

    def upstream(model: Any, imgsz: int, fraction: float) -> int:
        heading = os.getenv("CUDA_VISIBLE_DEVICES", "0").strip()[0]  # as in 8.4.60
        return int(heading) + 1

    small("arc-b580")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as Ultralytics sets it for device="cpu"
    run = Run(devices.info(0), (0,), Precision("fp32", "the test says so"), options())
    assert autobatch.replacement(run, upstream)(YOLO("yolo11n.yaml").model.to("xpu:0"), 64, 0.6) == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
