"""`yolo-xpu doctor` as a command: on simulated machines, and where PyTorch can't be imported."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics

import xpu_simulator
from xpu_simulator import quirks
from yolo_xpu_trainer.commands.doctor import runner
from yolo_xpu_trainer.diagnosis import Machine, Verdict
from yolo_xpu_trainer.diagnosis.children import CrashedError, HungError, lines
from yolo_xpu_trainer.versions import torch_release

pytestmark = pytest.mark.skipif(
    torch._C._has_xpu and not xpu_simulator.is_active(), reason="simulated machines are needed"
)
SCRIPT = Path(sysconfig.get_path("scripts")) / ("yolo-xpu.exe" if os.name == "nt" else "yolo-xpu")


def doctor(profile: str | None, *arguments: str, command: list[str] | None = None, **variables: str) -> tuple[int, str]:
    """Run on a simulated machine, or (None) with a PyTorch without XPU support; return exit status and output."""
    masks = ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR")
    environment = {k: v for k, v in os.environ.items() if k not in ("XPU_SIMULATOR", *masks)}
    environment |= {"COLUMNS": "250", **({"XPU_SIMULATOR": profile} if profile else {}), **variables}
    command = [*(command or [sys.executable, "-m", "yolo_xpu_trainer"]), "doctor", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def told(profile: str | None, *names: str, **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Make checks on a simulated machine; return exit status and what was found, by check."""
    arguments = [word for name in names for word in ("--check", name)]
    code, answer = doctor(profile, "--json", *arguments, **variables)
    return code, {check["name"]: check for check in json.loads(answer)["checks"]}


def cells(answer: str, name: str) -> list[str]:
    """Return the cells of the table row with that name."""
    (row,) = [line for line in answer.splitlines() if line.strip("│| ").startswith(name)]
    return [cell.strip() for cell in row.strip("│| ").split("│")][1:]


# Simulated machines


def test_a_healthy_machine_is_a_few_lines_and_exit_status_0() -> None:
    began = time.monotonic()
    code, answer = doctor("arc-b580")
    assert code == 0, answer
    lines = answer.splitlines()
    assert len(lines) == 4, answer
    assert torch.__version__.partition("+")[0] in lines[0]
    assert "xpu:0 Intel Arc B580 Graphics (11.3 GiB, bf16)" in lines[1]
    assert ultralytics.__version__ in lines[2]
    assert "All is well" in lines[3]
    assert time.monotonic() - began < 40  # 10 on a machine that does nothing else


@functools.cache
def everything(profile: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Make all checks but the longest on a simulated machine, once; return exit status and what was found, by check."""
    return told(profile, *(check.name for check in runner.CHECKS if check.name not in ("numerics", "patches")))


def cells_of_devices(profile: str, name: str) -> list[str]:
    """Return the cells of a row of the devices' table."""
    _, found = everything(profile)
    (row,) = [row for row in found["devices"]["table"] if row[0] == name]
    return [str(cell) for cell in row[1:]]


@pytest.mark.parametrize(
    "profile",
    [
        name
        if name in ("arc-a770-no-matrix", "core-ultra-155h", "max-1550")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in xpu_simulator.profiles.PROFILES
        if name != "none"
    ],
)
def test_every_simulated_machine_trains(profile: str) -> None:
    code, found = everything(profile)
    wrong = {name for name, check in found.items() if check["verdict"] in ("warning", "problem")}
    expected = set()
    if profile == "arc-a770-no-matrix" and torch_release() >= (2, 9):  # which tells a GPU's number (pytorch#161392)
        expected = {"matrix-units"}
    if xpu_simulator.profiles.PROFILES[profile].devices > 1 and torch_release() < (2, 8):  # without XCCL
        expected = {"collectives"}
    assert wrong == expected
    assert code == len(wrong)
    assert len(found["devices"]["table"][0]) == 1 + xpu_simulator.profiles.PROFILES[profile].devices
    refused = bool(xpu_simulator.profiles.PROFILES[profile].max_allocation)
    assert ("refuses 4 GiB" in found["large-allocation"]["seen"]) == refused


@pytest.fixture(scope="module")
def b580(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, str]:
    """Return the exit status, the output and the report of two checks on a simulated B580."""
    file = tmp_path_factory.mktemp("report") / "report.md"
    code, answer = doctor("arc-b580", "--report", str(file), "--check", "devices", "--check", "patches")
    return code, answer, file.read_text(encoding="utf-8")


def test_one_gpu(b580: tuple[int, str, str]) -> None:
    code, answer, _ = b580
    assert code == 0
    assert "xpu:0 Intel Arc B580 Graphics" in answer
    assert cells(answer, "memory") == ["11.3 GiB"]
    if hasattr(torch.xpu, "mem_get_info"):
        assert cells(answer, "free memory") == ["11.3 GiB"]
    assert cells(answer, "one allocation") == ["no limit"]
    assert cells(answer, "float64") == ["yes"]
    assert cells(answer, "matrix units") == ["yes"]
    assert cells(answer, "integrated") == ["no"]
    assert cells(answer, "driver") == ["1.6.33578+51"]
    assert cells(answer, "amp=True means")[0].startswith("bf16")


def test_two_gpus() -> None:
    _, found = everything("max-1550")
    assert "xpu:0 Intel Data Center GPU Max 1550" in found["devices"]["seen"]
    assert "xpu:1 Intel Data Center GPU Max 1550" in found["devices"]["seen"]
    assert cells_of_devices("max-1550", "memory") == ["64.0 GiB", "64.0 GiB"]


def test_the_installed_command() -> None:
    code, answer = doctor("none", "--check", "python", command=[str(SCRIPT)])
    assert (code, answer.partition(",")[0]) == (0, f"✓ python: Python {sys.version.split()[0]}")


def test_laptop_whose_driver_reports_no_free_memory() -> None:
    laptop = "core-ultra-155h"
    assert cells_of_devices(laptop, "memory") == ["29.0 GiB"]
    assert "not reported" in cells_of_devices(laptop, "free memory")[0]
    more = (
        "the device refuses more unless UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS=1"
        if torch_release() >= (2, 8)
        else "kernels of PyTorch before 2.8 can't address more"
    )
    assert cells_of_devices(laptop, "one allocation")[0].startswith(f"less than 4 GiB: {more}")
    assert cells_of_devices(laptop, "matrix units") == ["no"]
    assert cells_of_devices(laptop, "integrated") == ["yes"]
    assert cells_of_devices(laptop, "amp=True means")[0].startswith("fp16")


def test_patches_are_listed_with_reason_and_source(b580: tuple[int, str, str]) -> None:
    _, answer, _ = b580
    state, why, source = cells(answer, "utils.torch_utils:select_device")
    assert state == "active"
    assert why
    assert source
    assert "moved" not in answer
    assert "failed" not in answer


def test_the_patches_of_a_training_are_listed_with_reason_and_source(b580: tuple[int, str, str]) -> None:
    _, answer, _ = b580
    state, why, source = cells(answer, "utils.tal:TaskAlignedAssigner.forward")
    assert state == "wanted, while a detector trains"
    assert why
    assert source


def test_no_gpu() -> None:
    code, answer = doctor("none", "--check", "devices")
    assert code == 2
    assert "No XPU" in answer
    assert "the driver shows no XPU" in answer


def test_mask_that_hides_the_gpu() -> None:
    code, answer = doctor("arc-b580", "--check", "device-masks", ZE_AFFINITY_MASK="3")
    assert code == 2
    assert "ZE_AFFINITY_MASK='3'" in answer
    assert "fix: unset ZE_AFFINITY_MASK" in answer


def test_wrong_build_and_the_script_that_fixes_it() -> None:
    code, script = doctor(None, "--fix", "--check", "torch-build")
    assert code == 2
    assert "is built without XPU support" in script
    assert re.search("pip uninstall (-y )?torch", script)
    assert "pip install torch torchvision --index-url https://download.pytorch.org/whl/xpu" in script
    assert script.startswith("#!/bin/sh\n")
    done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("quirk", ["wrong_topk", pytest.param("short_nonzero", marks=pytest.mark.slow)])
def test_wrong_results_that_no_training_can_do_without_are_a_problem(quirk: str, tmp_path: Path) -> None:
    code, found = told("arc-b580", "numerics", XPU_SIMULATOR_QUIRKS=quirk, YOLO_CONFIG_DIR=str(tmp_path))
    assert found["numerics"]["verdict"] == "problem", found
    assert found["numerics"]["fix"]
    assert code == 2


@pytest.mark.slow
def test_what_there_was_no_time_for_is_compared_the_next_time(tmp_path: Path) -> None:
    for _ in range(8):
        code, found = told(
            "arc-b580", "numerics", XPU_SIMULATOR_QUIRKS="wrong_conv_grad", YOLO_CONFIG_DIR=str(tmp_path)
        )
        if code:
            break
        assert "--numerics compares all" in found["numerics"]["seen"]
    assert found["numerics"]["verdict"] == "warning", found
    assert "goes round it" in found["numerics"]["seen"]
    assert code == 1


@pytest.mark.slow
def test_a_card_without_float64_computes_all_that_it_can(tmp_path: Path) -> None:
    for _ in range(8):
        code, found = told("arc-a770", "numerics", YOLO_CONFIG_DIR=str(tmp_path))
        assert (code, found["numerics"]["verdict"]) == (0, "ok"), found
        if "float64" in found["numerics"]["seen"]:
            return
    pytest.fail("the operators that need float64 weren't reached")


@pytest.mark.slow
def test_numerics_compares_every_operator() -> None:
    code, answer = doctor("arc-b580", "--numerics")
    assert code == 0
    assert "all right" in answer
    code, answer = doctor("none", "--numerics")
    assert code == 2
    assert "No XPU" in answer


SHOWN = {
    "wrong_topk": ("topk(10) of 64×8400", "% of the numbers", "wrong"),
    "wrong_small_topk": ("topk(10) of 64×84, topk(1) of 16×8", "% of the numbers", "wrong"),
    "short_nonzero": ("nonzero", "% of the numbers", "wrong"),
    "wrong_foreach_lerp": ("_foreach_lerp_", "e-02", "wrong"),
    "wrong_conv_grad": (
        "convolution 3×3 of one pixel, channels_last",
        "1.0e+00",
        "Training in NCHW where feature maps",
    ),
    "corrupt_empty_cache": ("results pending at empty_cache", "100.00% of the numbers", "The device is waited for"),
    "slow_channels_last": ("layers in channels_last, beside NCHW", "× the time", "Training in NCHW"),
    "wrong_linear_bf16": ("matrix products", "", "Training in another precision"),
    "wrong_fused_optimizer": ("SGD, fused", "5.0e-01", "Weights are updated by more kernels"),
    "wrong_side_stream_copy": ("copies in a side stream", "% of the numbers", "Each batch is copied in its own step"),
    "wrong_foreach_copy": ("weights rounded together", "1.0e+00", "Each weight is rounded by itself"),
    "wrong_batch_norm": ("batch norm, max-pool, channels_last", "e-02", "Training in NCHW"),
    "wrong_unscale": ("gradient scaler", "inf", "Training in another precision"),
    "wrong_grid_sample": ("grid_sample", "e-01", "Trainings of RT-DETR end"),
    "wrong_softmax": ("softmax of 324, 400, 625 numbers", "e+00", "wrong"),
    "wrong_cumsum": ("cumsum", "% of the numbers", "wrong"),
}
"""What `--numerics` shows of each fault: an operator, its amount, and the verdict."""

MACHINES = {
    ("wrong_topk", "wrong_conv_grad"): 2,
    ("wrong_small_topk", "short_nonzero", "wrong_foreach_lerp", "wrong_softmax", "wrong_cumsum"): 2,
    ("slow_channels_last", "wrong_linear_bf16", "wrong_fused_optimizer", "wrong_side_stream_copy"): 1,
    ("corrupt_empty_cache", "wrong_foreach_copy", "wrong_batch_norm", "wrong_unscale", "wrong_grid_sample"): 1,
}
"""Faults that a machine has, and the exit status there."""


@pytest.mark.parametrize(
    "faulty", [next(iter(MACHINES)), *(pytest.param(m, marks=pytest.mark.slow) for m in list(MACHINES)[1:])]
)
def test_a_table_says_of_every_fault_how_much_is_wrong_and_what_is_done(faulty: tuple[str, ...]) -> None:
    code, answer = doctor("arc-b580", "--numerics", XPU_SIMULATOR_QUIRKS=",".join(faulty))
    headings = next(line for line in answer.splitlines() if "largest difference" in line)
    columns = [word.strip() for word in headings.strip("┃ ").split("┃")]
    assert columns == ["operator", "dtype", "largest difference", "verdict"]
    rows = rows_of(answer)
    for operator, amount, verdict in map(SHOWN.__getitem__, faulty):
        wrong = [row for row in rows if row[0] == operator and row[3] != "right"]
        assert wrong, (operator, answer)
        for _, _, seen, said in wrong:
            assert amount in seen
            assert verdict in said
    assert len([row for row in rows if row[3] == "right"]) > 90
    n = len([row for row in rows if row[3] != "right"])
    fatal = len([row for row in rows if row[3] == "wrong" or row[3].startswith("fails: ")])
    assert re.search(
        rf"{len(rows)} operators compared in [\d.]+ s: {n} wrong, {fatal} of which no training can", answer
    )
    assert ("whl/xpu" in answer) == (fatal > 0 or "wrong_grid_sample" in faulty)
    assert code == MACHINES[faulty]


def test_every_fault_is_tried_on_some_machine() -> None:
    assert sorted(quirk for faulty in MACHINES for quirk in faulty) == sorted(SHOWN) == sorted(quirks.QUIRKS)


def rows_of(answer: str) -> list[list[str]]:
    """Return the cells of a table's rows."""
    lines = [line for line in answer.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


@pytest.mark.slow
def test_what_rt_detr_alone_needs_is_a_warning(tmp_path: Path) -> None:
    quirk = {"XPU_SIMULATOR_QUIRKS": "wrong_grid_sample", "YOLO_CONFIG_DIR": str(tmp_path)}
    code, found = told("arc-b580", "numerics", **quirk)
    assert (code, found["numerics"]["verdict"]) == (1, "warning"), found
    assert "Trainings of RT-DETR end before their first batch" in found["numerics"]["seen"]
    assert "whl/xpu" in found["numerics"]["fix"][0]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "text"), [("properties_crash", "crashes"), ("properties_hang", "hangs")])
def test_a_driver_that_fails_costs_its_time_and_no_more(fault: str, text: str) -> None:
    began = time.monotonic()
    code, answer = doctor("arc-b580", "--timeout", "12", "--check", "devices", XPU_SIMULATOR_FAULTS=fault)
    assert code == 2
    assert text in answer
    assert time.monotonic() - began < 40


@pytest.mark.slow
def test_no_xccl() -> None:
    code, found = told("max-1550", "collectives", XPU_SIMULATOR_FAULTS="no_xccl")
    assert (code, found["collectives"]["verdict"]) == (1, "warning")


# What it is asked for


def test_a_terminal_without_unicode_gets_marks_too() -> None:
    code, answer = doctor("none", "--check", "python", PYTHONIOENCODING="cp1252")
    assert code == 0
    assert answer.startswith("ok python: Python")


def test_list_names_every_check() -> None:
    code, answer = doctor("arc-b580", "--list")
    assert code == 0
    assert [line.split()[0] for line in answer.splitlines()] == [check.name for check in runner.CHECKS]


def test_an_unknown_check_is_an_error_that_names_the_nearest() -> None:
    command = [sys.executable, "-m", "yolo_xpu_trainer", "doctor", "--check", "torch-bild"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Did you mean torch-build?" in done.stderr


def test_the_report_has_tables_and_no_paths(b580: tuple[int, str, str]) -> None:
    _, _, text = b580
    assert "| ✓ | devices | xpu:0 Intel Arc B580 Graphics" in text
    assert "| utils.torch_utils:select_device | active |" in text
    assert str(Path.home()) not in text
    assert sys.prefix not in text


def test_a_report_that_cant_be_written_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "yolo_xpu_trainer", "doctor", "--check", "python", "--report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "can't write" in done.stderr
    assert "Traceback" not in done.stderr


# Other packages


def plugin(folder: Path, name: str, text: str) -> None:
    """Write a package with a plugin of ours."""
    (folder / f"{name}.py").write_text(text)
    metadata = folder / f"{name}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[yolo_xpu_trainer]\n{name} = {name}\n")


CAMERA = """
from yolo_xpu_trainer import Diagnosis, DoctorCheck, Machine, Verdict, hookimpl

def camera(machine: Machine) -> Diagnosis:
    if machine.path("/dev/no-camera").exists():
        return Diagnosis(Verdict.OK, "found")
    return Diagnosis(Verdict.WARNING, "no camera", fix=("sudo modprobe camera",), advice="Plug it in.")

def fails(machine):
    raise RuntimeError("a defect")

@hookimpl
def xpu_doctor_checks():
    return [DoctorCheck("camera", "a camera", camera), DoctorCheck("defect", "a check that fails", fails)]
"""


def test_other_packages_add_checks_and_broken_ones_are_named(tmp_path: Path) -> None:
    plugin(tmp_path, "camera_plugin", CAMERA)
    plugin(tmp_path, "broken_plugin", "raise RuntimeError('it fell apart')")
    code, answer = doctor("arc-b580", "--check", "camera", "--check", "plugins", PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "! plugins: plugin 'broken_plugin' (broken_plugin) is disabled" in answer
    assert "it fell apart" in answer
    assert "! camera: no camera\n    fix: sudo modprobe camera\n         Plug it in.\n" in answer
    assert "defect" not in answer


def test_other_packages_checks_are_listed_and_may_fail(tmp_path: Path) -> None:
    plugin(tmp_path, "camera_plugin", CAMERA)
    machine = Machine(
        packages=(tmp_path, *Machine().packages), environ={**os.environ, "XPU_SIMULATOR": "", "YOLO_XPU_PLUGINS": "*"}
    )
    found = {result.check.name: result for result in runner.examine(machine, ())}
    assert found["camera"].check.what == "a camera (of the plugin camera_plugin)"
    assert found["defect"].diagnosis.seen == "the check failed: RuntimeError: a defect"


# A PyTorch that can't be imported


def stub(folder: Path, text: str) -> Path:
    """Write a package that stands for PyTorch's XPU build."""
    (folder / "torch").mkdir()
    (folder / "torch" / "version.py").write_text("__version__ = '2.14.1+xpu'\n")
    (folder / "torch" / "__init__.py").write_text(text)
    return folder


STUBS = {
    "an error": ("raise ImportError('libze_loader.so.1: cannot open shared object file')", "libze_loader isn't found"),
    "a hang": ("import time; time.sleep(600)", "didn't end within 3 s"),
    "a crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "an exit": ("import os; os._exit(3)", "exit status 3"),
    "noise": ("print('{}'); print('{\"begin\": 1}'); raise ImportError('file too short')", "file too short"),
    "a child that keeps its output open": (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\ntime.sleep(600)",
        "didn't end within 3 s",
    ),
}


@pytest.mark.parametrize("name", STUBS)
def test_a_pytorch_that_cant_be_imported_is_diagnosed_in_time(name: str, tmp_path: Path) -> None:
    text, expected = STUBS[name]
    began = time.monotonic()
    code, answer = doctor(
        None,
        "--timeout",
        "3",
        "--check",
        "torch-build",
        "--check",
        "torch-import",
        PYTHONPATH=str(stub(tmp_path, text)),
    )
    assert code == 2
    assert "✓ torch-build: PyTorch 2.14.1+xpu, an XPU build" in answer
    assert expected in answer
    assert "fix: " in answer or "dgpu-docs.intel.com" in answer  # a page, where Debian 12's apt has no driver
    assert time.monotonic() - began < 20


def test_everything_else_is_looked_at_where_pytorch_hangs(tmp_path: Path) -> None:
    began = time.monotonic()
    code, answer = doctor(None, "--timeout", "2", "-v", PYTHONPATH=str(stub(tmp_path, "import time; time.sleep(600)")))
    assert code == 2
    assert all(f" {check.name}: " in answer for check in runner.CHECKS)
    assert "- devices: can't tell: PyTorch can't be imported" in answer
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("arguments", [[], ["--list"]])
def test_the_commands_own_process_never_imports_pytorch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from yolo_xpu_trainer.commands import main\n"
        f"main({['doctor', *arguments]!r})\n"
        "print([name for name in ('torch', 'ultralytics', 'numpy') if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("[]\n"), done.stderr


def test_a_probe_that_hangs_doesnt_cost_the_probes_after_it(tmp_path: Path) -> None:
    text = "import types\nversion = types.SimpleNamespace(xpu='2025')\n__version__ = '2.14.1+xpu'\n"
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("import time; time.sleep(600)")
    machine = Machine(
        packages=(stub(tmp_path, text), *Machine().packages), environ={**os.environ, "XPU_SIMULATOR": ""}, seconds=5
    )
    found = {result.check.name: result.diagnosis for result in runner.examine(machine, runner.CHECKS)}
    assert found["torch-import"].verdict is Verdict.OK
    assert "no answer within" in found["compiler"].seen
    assert found["ultralytics"].verdict is Verdict.PROBLEM  # a PyTorch of three names isn't enough for it


# Child processes


def test_lines_arrive_one_by_one_and_errors_with_what_was_said() -> None:
    code = "import sys; print('a', flush=True); print('b'); print('why', file=sys.stderr); sys.exit(3)"
    seen = []
    with pytest.raises(CrashedError, match="exit status 3") as ended:
        seen += lines([sys.executable, "-c", code], os.environ, 30)
    assert ended.value.said == "why"
    assert ended.value.status == 3
    assert list(lines([sys.executable, "-c", "print('a'); print('b')"], os.environ, 30)) == ["a", "b"]


def test_a_silent_child_is_ended_with_what_it_started(tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    grandchild = f"import time, pathlib; time.sleep(3); pathlib.Path({str(marker)!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {grandchild!r}]); time.sleep(600)"
    with pytest.raises(HungError):
        list(lines([sys.executable, "-c", code], os.environ, 1))
    time.sleep(4)
    assert not marker.exists()


def test_a_program_that_isnt_there_is_an_error() -> None:
    with pytest.raises(CrashedError, match="can't be started"):
        list(lines(["/no/such/program"], os.environ, 1))
