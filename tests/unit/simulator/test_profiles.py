"""Each profile is the GPU that it names."""

import json
import os
import subprocess
import sys

import pytest
import torch

import xpu_simulator
from xpu_simulator.profiles import PROFILES


def _probe(code, profile="arc-b580", **variables):
    """Run code in a fresh process that has the simulated XPU from the start, and return what it prints as JSON."""
    environment = {**os.environ, "XPU_SIMULATOR": profile, **variables}
    done = subprocess.run(
        [sys.executable, "-c", f"import json, torch\nprint(json.dumps({code}))"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "none"])
def test_a_profile_s_properties_are_those_that_torch_reports(name, xpu):
    with xpu_simulator.use_profile(name) as profile:
        assert torch.xpu.device_count() == profile.devices
        reported = torch.xpu.get_device_properties(0)
        assert reported.name == profile.properties.name
        assert reported.total_memory == profile.properties.total_memory
        assert reported.has_fp64 == profile.properties.has_fp64
        assert "simulated" in reported.platform_name
        assert repr(reported).startswith(f"_XpuDeviceProperties(name='{reported.name}'")
        assert torch.xpu.get_device_capability(0)["device_id"] == reported.device_id
        assert torch.xpu.is_tf32_supported() == reported.has_subgroup_matrix_multiply_accumulate
        assert torch.xpu.is_bf16_supported()


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.double(),
        lambda x: x.to("cpu").double().to(x.device) + 1,
        lambda x: torch.zeros(3, dtype=torch.float64, device=x.device),
        lambda x: torch.arange(3, dtype=torch.float64, device=x.device),
        lambda x: x.sum(dtype=torch.float64),
    ],
)
@pytest.mark.xpu_profile("arc-a770")
def test_without_fp64_a_float64_kernel_is_refused(compute, xpu):
    with pytest.raises(RuntimeError, match="Required aspect fp64 is not supported on the device"):
        compute(torch.ones(3, device=xpu))


@pytest.mark.xpu_profile("arc-a770")
def test_without_fp64_float64_can_still_be_stored_and_copied(xpu):
    stored = torch.tensor([1.5, 2.5], dtype=torch.float64).to(xpu)
    assert stored.cpu().tolist() == [1.5, 2.5]
    assert stored[1].item() == 2.5
    assert stored.clone().view(2, 1).cpu().dtype == torch.float64
    assert torch.empty(3, dtype=torch.float64, device=xpu).numel() == 3


@pytest.mark.xpu_profile("core-ultra-155h")
def test_an_integrated_gpu_can_t_tell_its_free_memory(xpu):
    with pytest.raises(RuntimeError) as raised:
        torch.xpu.mem_get_info()
    assert str(raised.value).startswith(
        "The device (Intel(R) Arc(TM) Graphics) doesn't support querying the available free memory. "
    )
    properties = torch.xpu.get_device_properties()
    assert properties.is_integrated_gpu
    assert not properties.has_bfloat16_conversions
    assert not properties.has_subgroup_matrix_multiply_accumulate


@pytest.mark.xpu_profile("none")
def test_without_a_device_torch_is_a_build_that_finds_none(xpu):
    assert torch.xpu._is_compiled()
    assert not torch.xpu.is_available()
    assert torch.xpu.device_count() == 0
    assert not torch.accelerator.is_available()
    assert isinstance(torch.version.xpu, str)
    with pytest.raises(RuntimeError, match="No XPU devices are available"):
        torch.ones(1, device="xpu")


def test_a_profile_ends_with_its_block(xpu):
    before = torch.xpu.get_device_name()
    with xpu_simulator.use_profile("max-1550"):
        assert torch.xpu.device_count() == 2
        torch.xpu.set_device(1)
    assert torch.xpu.get_device_name() == before
    assert torch.xpu.current_device() == 0
    assert torch.ones(2, device="xpu").sum().item() == 2


def test_an_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'arc-b5080'.*arc-b580"), xpu_simulator.use_profile("arc-b5080"):
        pass


@pytest.mark.parametrize(
    ("variable", "value", "devices"),
    [
        ("ZE_AFFINITY_MASK", "0", [0]),
        ("ZE_AFFINITY_MASK", "1", [1]),
        ("ZE_AFFINITY_MASK", "0,1", [0, 1]),
        ("ZE_AFFINITY_MASK", "5", []),
        ("ONEAPI_DEVICE_SELECTOR", "level_zero:1", [1]),
        ("ONEAPI_DEVICE_SELECTOR", "level_zero:*", [0, 1]),
        ("ONEAPI_DEVICE_SELECTOR", "level_zero:gpu", []),
        ("ONEAPI_DEVICE_SELECTOR", "opencl:*", []),
    ],
)
def test_the_environment_selects_devices(variable, value, devices, xpu, monkeypatch):
    monkeypatch.setenv(variable, value)
    with xpu_simulator.use_profile("max-1550"):
        assert torch.xpu.device_count() == torch.accelerator.device_count() == len(devices)
        chosen = [torch.xpu.get_device_properties(i).uuid for i in range(len(devices))]
        assert [int(uuid[-1]) - 1 for uuid in chosen] == devices


def test_a_selection_made_after_the_first_question_comes_too_late(xpu, monkeypatch):
    with xpu_simulator.use_profile("max-1550"):
        assert torch.xpu.device_count() == 2
        monkeypatch.setenv("ZE_AFFINITY_MASK", "0")
        assert torch.xpu.device_count() == 2


def test_the_environment_switches_the_device_on_in_any_process():
    told = _probe("[torch.xpu.is_available(), torch.xpu.device_count(), torch.version.xpu is None]", "max-1550")
    assert told == [True, 2, False]
    assert _probe("torch.xpu.get_device_properties().total_memory", XPU_SIMULATOR_CAPACITY="1000000") == 1000000


def test_without_the_variable_torch_is_left_alone():
    assert _probe("[torch.xpu.is_available(), torch.version.xpu]", profile="") == [False, None]


def test_torch_s_own_triton_kernels_stay_out_of_the_way():
    """YOLO11's attention meets one of them, bmm with an inner size of 1, at imgsz=32."""
    code = "torch.bmm(torch.ones(2, 3, 1, device='xpu'), torch.ones(2, 1, 3, device='xpu')).sum().item()"
    assert _probe(code) == 18
