"""Faults come when they were ordered, with the texts of the hardware."""

import gc
import os
import signal
import subprocess
import sys

import pytest
import torch

import xpu_simulator
from xpu_simulator import faults

MB = 1 << 20


def test_memory_runs_out_at_the_ordered_kernel_and_not_after(xpu):
    x = torch.ones(4, device=xpu)
    faults.out_of_memory(at_launch=3)
    x = x + 1
    x = x + 1
    with pytest.raises(
        torch.OutOfMemoryError, match=r"^XPU out of memory\. Tried to allocate .* has a total capacity of"
    ):
        x + 1
    assert (x + 1).tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
            "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        ),
        (
            "UR_RESULT_ERROR_OUT_OF_RESOURCES",
            "level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)",
        ),
        ("something else", "something else"),
    ],
)
def test_memory_runs_out_with_another_text(text, message, xpu):
    x = torch.ones(4, device=xpu)
    faults.out_of_memory(at_launch=1, text=text)
    with pytest.raises(RuntimeError) as raised:
        x + 1
    assert str(raised.value) == message
    assert not isinstance(raised.value, torch.OutOfMemoryError)


def test_a_lost_device_stays_lost(xpu):
    x = torch.ones(4, device=xpu)
    faults.device_lost(at_launch=1)
    lost = r"level_zero backend failed with error: 20 \(UR_RESULT_ERROR_DEVICE_LOST\)"
    calls = [
        lambda: x + 1,
        lambda: x * 2,
        x.cpu,
        x.tolist,
        lambda: x.sum().item(),
        lambda: torch.ones(2).to(xpu),
        lambda: torch.empty(2, device=xpu),
        torch.xpu.synchronize,
    ]
    if hasattr(torch, "accelerator"):
        calls += [torch.accelerator.synchronize, torch.xpu.mem_get_info]
    for call in calls:
        with pytest.raises(RuntimeError, match=lost):
            call()
    faults.clear()
    assert x.tolist() == [1, 1, 1, 1]


@pytest.mark.needs("torch.xpu.mem_get_info")
def test_free_memory_can_t_be_asked_for(xpu):
    faults.mem_get_info()
    with pytest.raises(RuntimeError, match="doesn't support querying the available free memory"):
        torch.xpu.mem_get_info()
    faults.clear()
    assert torch.xpu.mem_get_info()


@pytest.fixture
def crowded(xpu, monkeypatch):
    """A GPU of 100 MB."""
    gc.collect()
    torch.xpu.empty_cache()
    monkeypatch.setenv("XPU_SIMULATOR_CAPACITY", str(100 * MB))
    with xpu_simulator.use_profile("arc-b580"):
        yield xpu
        gc.collect()
        faults.clear()


def _megabytes(n, device):
    return torch.empty(n * MB, dtype=torch.uint8, device=device)


def test_by_itself_memory_that_runs_out_is_the_allocator_s_error(crowded):
    kept = _megabytes(60, crowded)
    with pytest.raises(torch.OutOfMemoryError):
        _megabytes(60, crowded)
    assert kept.numel()


@pytest.mark.parametrize(
    ("error", "code"), [(faults.OUT_OF_DEVICE_MEMORY, 39), (faults.OUT_OF_RESOURCES, 40), (faults.DEVICE_LOST, 20)]
)
def test_a_driver_that_overcommits_lets_a_kernel_fail(error, code, crowded):
    faults.exhaustion(error)
    first = _megabytes(60, crowded)
    second = _megabytes(60, crowded)  # beyond what there is
    text = rf"level_zero backend failed with error: {code} \({error}\)"
    with pytest.raises(RuntimeError, match=text) as raised:
        first.zero_()
    assert not isinstance(raised.value, torch.OutOfMemoryError)
    del second
    torch.xpu.empty_cache()
    if error == faults.DEVICE_LOST:
        with pytest.raises(RuntimeError, match=text):
            first.zero_()
    else:
        assert not first.zero_().any().item()


@pytest.mark.needs("torch.xpu.set_per_process_memory_fraction")
def test_a_fraction_makes_the_allocator_raise_before_the_driver_overcommits(crowded):
    faults.exhaustion()
    torch.xpu.set_per_process_memory_fraction(1.0)
    kept = _megabytes(60, crowded)
    with pytest.raises(torch.OutOfMemoryError):
        _megabytes(60, crowded)
    assert not kept.zero_().any().item()


def test_what_could_never_fit_is_refused_by_a_driver_that_overcommits_too(crowded):
    faults.exhaustion()
    with pytest.raises(torch.OutOfMemoryError):
        _megabytes(120, crowded)


def test_a_profile_may_overcommit(xpu, monkeypatch):
    monkeypatch.setenv("XPU_SIMULATOR_CAPACITY", str(100 * MB))
    with xpu_simulator.use_profile("arc-b580-overcommits"):
        kept = [_megabytes(60, xpu) for _ in range(2)]
        with pytest.raises(RuntimeError, match="OUT_OF_RESOURCES"):
            kept[0].zero_()
        del kept


def test_a_question_for_properties_may_end_the_process():
    code = "import torch; print(torch.xpu.device_count(), flush=True); torch.xpu.get_device_name(0)"
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", "XPU_SIMULATOR_FAULTS": "properties_crash"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "1\n"
    assert done.returncode == -signal.SIGSEGV


def test_a_question_for_properties_may_never_end_and_lets_no_thread_run():
    code = (
        "import threading, torch\n"
        "threading.Timer(1, print, ['another thread ran'], {'flush': True}).start()\n"
        "print('asked', flush=True)\n"
        "torch.xpu.get_device_properties(0)\n"
        "print('answered', flush=True)\n"
    )
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", "XPU_SIMULATOR_FAULTS": "properties_hang"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "asked\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        process.kill()
        assert process.stdout.read() == ""


@pytest.mark.needs("torch.distributed.is_xccl_available")
def test_xccl_may_be_missing(xpu, tmp_path):
    import torch.distributed as dist

    def start():
        dist.init_process_group("xccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)

    faults.no_xccl()
    assert not dist.is_xccl_available()
    with pytest.raises(RuntimeError, match="Distributed package doesn't have XCCL built in"):
        start()
    faults.clear()
    assert dist.is_xccl_available()


def test_a_fault_in_the_backward_pass_reaches_the_caller(xpu):
    x = torch.ones(4, device=xpu, requires_grad=True)
    loss = (x * x).sum()
    faults.out_of_memory(at_launch=1)
    with pytest.raises(torch.OutOfMemoryError):
        loss.backward()


@pytest.mark.needs("torch.xpu.mem_get_info")
def test_the_environment_orders_faults():
    code = (
        "import torch\n"
        "x = torch.ones(2, device='xpu')\n"  # the first launch
        "for kind in (torch.OutOfMemoryError, RuntimeError):\n"
        "    try:\n"
        "        x + 1\n"
        "    except kind as error:\n"
        "        print(error)\n"
        "try:\n"
        "    torch.xpu.mem_get_info()\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", "XPU_SIMULATOR_FAULTS": "oom@2, resources@3,mem_get_info"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out_of_memory, resources, free_memory = done.stdout.splitlines()
    assert out_of_memory.startswith("XPU out of memory.")
    assert resources.endswith("(UR_RESULT_ERROR_OUT_OF_RESOURCES)")
    assert "free memory" in free_memory


def test_an_order_that_makes_no_sense_is_refused(monkeypatch):
    monkeypatch.setenv("XPU_SIMULATOR_FAULTS", "explode@3")
    with pytest.raises(ValueError, match="explode@3"):
        faults.order_from_environment()
    monkeypatch.setenv("XPU_SIMULATOR_FAULTS", "no_xccl@3")
    with pytest.raises(ValueError, match="no_xccl@3"):
        faults.order_from_environment()
