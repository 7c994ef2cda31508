"""Faults come when they were ordered, with the texts of the hardware."""

import os
import subprocess
import sys

import pytest
import torch

from xpu_simulator import faults


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
    for call in (
        lambda: x + 1,
        lambda: x * 2,
        x.cpu,
        x.tolist,
        lambda: x.sum().item(),
        lambda: torch.ones(2).to(xpu),
        lambda: torch.empty(2, device=xpu),
        torch.xpu.synchronize,
        torch.accelerator.synchronize,
        torch.xpu.mem_get_info,
    ):
        with pytest.raises(RuntimeError, match=lost):
            call()
    faults.clear()
    assert x.tolist() == [1, 1, 1, 1]


def test_free_memory_can_t_be_asked_for(xpu):
    faults.mem_get_info()
    with pytest.raises(RuntimeError, match="doesn't support querying the available free memory"):
        torch.xpu.mem_get_info()
    faults.clear()
    assert torch.xpu.mem_get_info()


def test_a_fault_in_the_backward_pass_reaches_the_caller(xpu):
    x = torch.ones(4, device=xpu, requires_grad=True)
    loss = (x * x).sum()
    faults.out_of_memory(at_launch=1)
    with pytest.raises(torch.OutOfMemoryError):
        loss.backward()


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
