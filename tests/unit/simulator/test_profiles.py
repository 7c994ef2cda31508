"""Each profile is the GPU that it names."""

import contextlib
import json
import os
import subprocess
import sys
from textwrap import dedent

import pytest
import torch

import xpu_simulator
from xpu_simulator import torch_xpu
from xpu_simulator.profiles import PROFILES

NEWEST = (2, 14)  # the release that tells all properties


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
        assert torch.xpu.get_device_capability(0).items() >= vars(reported).items()
        assert not [name for name in profile.without if hasattr(reported, name)]
        if hasattr(torch.xpu, "is_tf32_supported"):
            assert torch.xpu.is_tf32_supported() == reported.has_subgroup_matrix_multiply_accumulate
        assert torch.xpu.is_bf16_supported()


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.double() * 2,
        lambda x: x.double().reciprocal(),
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
def test_without_fp64_numbers_can_still_be_converted_to_float64_and_back(xpu):
    x = torch.tensor([1.5, 2.5], device=xpu)
    assert x.double().cpu().dtype == torch.float64
    assert x.double().float().tolist() == [1.5, 2.5]


def _scaler_update(x):
    torch._amp_update_scale_(x.sum(), torch.zeros((), dtype=torch.int32, device=x.device), x.sum() * 0, 2.0, 0.5, 10)


def _fused_step(kind, lr=0.1):
    def compute(x):
        parameter = torch.nn.Parameter(x.clone())
        parameter.grad = torch.ones_like(parameter)
        kind([parameter], lr=lr, fused=True).step()

    return compute


DOUBLE_INSIDE = {
    "the scaler's update": _scaler_update,
    **{f"fused {kind.__name__}": _fused_step(kind) for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)},
}


@pytest.mark.parametrize("name", DOUBLE_INSIDE)
def test_kernels_that_compute_in_double_inside_need_fp64(name, xpu):
    DOUBLE_INSIDE[name](torch.ones(3, device=xpu))
    with xpu_simulator.use_profile("arc-a770"):
        x = torch.ones(3, device=xpu)
        with pytest.raises(RuntimeError, match="Required aspect fp64 is not supported on the device"):
            DOUBLE_INSIDE[name](x)


@pytest.mark.xpu_profile("arc-a770")
def test_without_fp64_float64_can_still_be_stored_and_copied(xpu):
    stored = torch.tensor([1.5, 2.5], dtype=torch.float64).to(xpu)
    assert stored.cpu().tolist() == [1.5, 2.5]
    assert stored[1].item() == 2.5
    assert stored.clone().view(2, 1).cpu().dtype == torch.float64
    assert torch.empty(3, dtype=torch.float64, device=xpu).numel() == 3


@pytest.mark.needs("torch.xpu.mem_get_info")
@pytest.mark.xpu_profile("core-ultra-155h")
def test_an_integrated_gpu_can_t_tell_its_free_memory(xpu, monkeypatch):
    monkeypatch.setattr(torch_xpu, "release", lambda: NEWEST)
    with pytest.raises(RuntimeError) as raised:
        torch.xpu.mem_get_info()
    assert str(raised.value).startswith(
        "The device (Intel(R) Arc(TM) Graphics) doesn't support querying the available free memory. "
    )
    properties = torch.xpu.get_device_properties()
    assert properties.is_integrated_gpu
    assert not properties.has_bfloat16_conversions
    assert not properties.has_subgroup_matrix_multiply_accumulate


@pytest.mark.needs("torch.xpu.mem_get_info")
@pytest.mark.xpu_profile("lunar-lake")
def test_a_lunar_lake_under_linux_has_a_bracketed_name_and_doesn_t_say_that_it_is_integrated(xpu):
    properties = torch.xpu.get_device_properties()
    assert properties.name == "Intel(R) Graphics [0x64a0]"
    assert not hasattr(properties, "is_integrated_gpu")
    with pytest.raises(RuntimeError, match="free memory"):
        torch.xpu.mem_get_info()


@pytest.mark.xpu_profile("arc-a770-no-matrix")
def test_without_libocloc_no_extension_is_seen(xpu):
    properties = torch.xpu.get_device_properties()
    seen = [name for name in vars(properties) if name.startswith(("has_subgroup", "has_bfloat16"))]
    assert len(seen) == 4
    assert not [name for name in seen if getattr(properties, name)]
    assert "A770" in properties.name


@pytest.mark.needs("torch.xpu.mem_get_info")
def test_a_discrete_gpu_may_have_no_figures_of_its_free_memory_or_wrong_ones(xpu, monkeypatch):
    monkeypatch.setattr(torch_xpu, "release", lambda: NEWEST)
    with xpu_simulator.use_profile("arc-b580-no-free"), pytest.raises(RuntimeError, match="free memory"):
        torch.xpu.mem_get_info()
    with xpu_simulator.use_profile("arc-b580-zero-free"):
        assert torch.xpu.mem_get_info() == (0, torch.xpu.get_device_properties().total_memory)
        assert not torch.xpu.get_device_properties().is_integrated_gpu


@pytest.mark.parametrize(
    ("release", "told", "hidden"),
    [
        ((2, 5), "driver_version", "architecture"),
        ((2, 8), "architecture", "device_id"),
        ((2, 9), "uuid", "local_mem_size"),
        ((2, 12), "memory_clock_rate", "is_integrated_gpu"),
        ((2, 13), "is_integrated_gpu", None),
    ],
)
def test_properties_are_those_of_the_release(release, told, hidden, xpu, monkeypatch):
    monkeypatch.setattr(torch_xpu, "release", lambda: release)
    properties = torch.xpu.get_device_properties()
    assert hasattr(properties, told)
    assert hidden is None or not hasattr(properties, hidden)
    assert hidden is None or f"{hidden}=" not in repr(properties)


@pytest.mark.xpu_profile("none")
def test_without_a_device_torch_is_a_build_that_finds_none(xpu):
    assert torch.xpu._is_compiled()
    assert not torch.xpu.is_available()
    assert torch.xpu.device_count() == 0
    if hasattr(torch, "accelerator"):
        assert not torch.accelerator.is_available()
    assert vars(torch.version).get("xpu", "older") is not None
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
    monkeypatch.setattr(torch_xpu, "release", lambda: NEWEST)
    monkeypatch.setenv(variable, value)
    with xpu_simulator.use_profile("max-1550"):
        _initialize()
        chosen = [torch.xpu.get_device_properties(i).uuid for i in range(len(devices))]
        assert [int(uuid[-1]) - 1 for uuid in chosen] == devices
        with pytest.raises((RuntimeError, AssertionError)):  # the latter before 2.9 or so
            torch.xpu.get_device_properties(len(devices))


def _initialize():
    with contextlib.suppress(RuntimeError):
        torch.xpu.init()


@pytest.mark.parametrize(
    ("variable", "value", "before", "after"),
    [
        ("ZE_AFFINITY_MASK", "1", 1, 1),
        ("ONEAPI_DEVICE_SELECTOR", "level_zero:1", 2, 1),
        ("ONEAPI_DEVICE_SELECTOR", "opencl:*", 2, 2),  # nothing to initialize: it stays at Sysman's answer
    ],
)
@pytest.mark.needs("torch.xpu._raw_device_count_zes")
def test_before_initialization_devices_are_counted_without_the_selector(variable, value, before, after):
    code = """
        import torch
        print(torch.xpu.device_count(), torch.xpu.is_available())
        try:
            torch.xpu.init()
        except RuntimeError as error:
            print(error)
        else:
            print("initialized")
        print(torch.xpu.device_count())
    """
    environment = {**os.environ, "XPU_SIMULATOR": "max-1550", variable: value}
    done = subprocess.run([sys.executable, "-c", dedent(code)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counted, initialized, counted_again = done.stdout.splitlines()
    assert counted == f"{before} True"
    assert initialized == ("No XPU devices are available." if value == "opencl:*" else "initialized")
    assert counted_again == str(after)


def test_a_selection_made_after_initialization_comes_too_late(xpu, monkeypatch):
    with xpu_simulator.use_profile("max-1550"):
        torch.xpu.init()
        assert torch.xpu.device_count() == 2
        monkeypatch.setenv("ZE_AFFINITY_MASK", "0")
        assert torch.xpu.device_count() == 2


def test_the_environment_switches_the_device_on_in_any_process():
    told = _probe(
        "[torch.xpu.is_available(), torch.xpu.device_count(), getattr(torch.version, 'xpu', '') is None]", "max-1550"
    )
    assert told == [True, 2, False]
    assert _probe("torch.xpu.get_device_properties().total_memory", XPU_SIMULATOR_CAPACITY="1000000") == 1000000


def test_without_the_variable_torch_is_left_alone():
    assert _probe("[torch.xpu.is_available(), getattr(torch.version, 'xpu', None)]", profile="") == [False, None]


def test_torch_s_own_triton_kernels_stay_out_of_the_way():
    """YOLO11's attention meets one of them, bmm with an inner size of 1, at imgsz=32."""
    code = "torch.bmm(torch.ones(2, 3, 1, device='xpu'), torch.ones(2, 1, 3, device='xpu')).sum().item()"
    assert _probe(code) == 18
