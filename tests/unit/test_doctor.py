"""`yolo-xpu doctor` shows the XPUs, or why there is none and how to fix it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import ultralytics

import xpu_simulator
from yolo_xpu_trainer.versions import torch_release

pytestmark = pytest.mark.skipif(
    torch._C._has_xpu and not xpu_simulator.is_active(), reason="simulated machines are needed"
)
SCRIPT = Path(sysconfig.get_path("scripts")) / ("yolo-xpu.exe" if os.name == "nt" else "yolo-xpu")


def doctor(profile: str | None, command: list[str] | None = None, **variables: str) -> tuple[int, str]:
    """Run on a simulated machine, or (None) with a PyTorch without XPU support; return exit code and output."""
    masks = ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR")
    environment = {k: v for k, v in os.environ.items() if k not in ("XPU_SIMULATOR", *masks)}
    environment |= {"COLUMNS": "250", **({"XPU_SIMULATOR": profile} if profile else {}), **variables}
    command = command or [sys.executable, "-m", "yolo_xpu_trainer", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def cells(answer: str, name: str) -> list[str]:
    """Return the cells of the table row with that name."""
    (row,) = [line for line in answer.splitlines() if line.strip("│| ").startswith(name)]
    return [cell.strip() for cell in row.strip("│| ").split("│")][1:]


def test_one_gpu() -> None:
    code, answer = doctor("arc-b580")
    assert code == 0
    assert f"torch {torch.__version__}, Ultralytics {ultralytics.__version__}" in answer
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


def test_two_gpus_with_installed_command() -> None:
    code, answer = doctor("max-1550", [str(SCRIPT), "doctor"])
    assert code == 0
    assert "xpu:0 Intel Data Center GPU Max 1550" in answer
    assert "xpu:1 Intel Data Center GPU Max 1550" in answer
    assert cells(answer, "memory") == ["64.0 GiB", "64.0 GiB"]


def test_laptop_whose_driver_reports_no_free_memory() -> None:
    code, answer = doctor("core-ultra-155h")
    assert code == 0
    assert cells(answer, "memory") == ["29.0 GiB"]
    assert "not reported" in cells(answer, "free memory")[0]
    more = (
        "the device refuses more unless UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS=1"
        if torch_release() >= (2, 8)
        else "kernels of PyTorch before 2.8 can't address more"
    )
    assert cells(answer, "one allocation")[0].startswith(f"less than 4 GiB: {more}")
    assert cells(answer, "matrix units") == ["no"]
    assert cells(answer, "integrated") == ["yes"]
    assert cells(answer, "amp=True means")[0].startswith("fp16")


def test_patches_are_listed_with_reason_and_source() -> None:
    _, answer = doctor("arc-b580")
    state, why, source = cells(answer, "utils.torch_utils:select_device")
    assert state == "active"
    assert why
    assert source
    assert "moved" not in answer
    assert "failed" not in answer


def test_the_patches_of_a_training_are_listed_with_reason_and_source() -> None:
    _, answer = doctor("arc-b580")
    before, _, training = answer.partition("Patches, while a detector trains")
    assert "utils.tal:TaskAlignedAssigner.forward" not in before
    state, why, source = cells(training, "utils.tal:TaskAlignedAssigner.forward")
    assert state == "wanted"
    assert why
    assert source


def test_no_gpu() -> None:
    code, answer = doctor("none")
    assert code == 1
    assert "No XPU" in answer
    assert "the driver shows no XPU" in answer
    assert "https://dgpu-docs.intel.com" in answer


def test_mask_that_hides_the_gpu() -> None:
    code, answer = doctor("arc-b580", ZE_AFFINITY_MASK="3")
    assert code == 1
    assert "ZE_AFFINITY_MASK='3'" in answer


def test_wrong_build() -> None:
    code, answer = doctor(None)
    assert code == 1
    assert "is built without XPU support" in answer
    assert "pip install torch torchvision --index-url https://download.pytorch.org/whl/xpu" in answer


def test_broken_plugin_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('it fell apart')")
    metadata = tmp_path / "broken_plugin-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[yolo_xpu_trainer]\nbroken = broken_plugin\n")
    code, answer = doctor("arc-b580", PYTHONPATH=str(tmp_path))
    assert code == 0
    assert "broken" in answer
    assert "it fell apart" in answer
