"""The bench: what it measures, in which order, what it skips, and what it restores."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from ultralytics.utils.torch_utils import unset_deterministic

import xpu_simulator
from xpu_simulator import faults
from yolo_xpu_trainer.activation import process_patches
from yolo_xpu_trainer.commands import main
from yolo_xpu_trainer.commands.bench import measuring, settings
from yolo_xpu_trainer.commands.bench.output import as_json, figure, markdown, table
from yolo_xpu_trainer.commands.bench.results import Case, Device, Report, Result, Window
from yolo_xpu_trainer.commands.measurement import data as synthetic_data
from yolo_xpu_trainer.commands.measurement import several, telemetry, timers, timing
from yolo_xpu_trainer.commands.measurement.isolation import first_line, plain_ultralytics, quiet, with_package
from yolo_xpu_trainer.policies import compile as compiling

pytestmark = pytest.mark.slow

arc_a770 = pytest.mark.xpu_profile("arc-a770")
no_xpu = pytest.mark.xpu_profile("none")

# Variables that are set by imports and by `YOLO(…)`.
SET_BY_OTHERS = {"CUBLAS_WORKSPACE_CONFIG", "NO_ALBUMENTATIONS_UPDATE", "TORCHINDUCTOR_CACHE_DIR"}

# 64 images are one optimizer step.
TINY = ["bench", "--imgsz", "64", "--batch", "64", "--steps", "1", "--repeats", "1"]
CPU = Device("cpu", "A Processor")
GPU = Device("xpu:0", "Intel Arc B580 Graphics", "1.6.33578+51", 0)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm up for two steps, and without workers, because starting them takes longer than the steps."""
    monkeypatch.setattr(timing, "WARMUP", 2)
    monkeypatch.setattr(measuring, "WARMUP", 2)
    arguments = timing._arguments
    monkeypatch.setattr(timing, "_arguments", lambda *args: {**arguments(*args), "workers": 0})


def read(directory: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((directory / "bench.json").read_text(encoding="utf-8"))
    return report


def by_case(report: dict[str, Any]) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    keys = ("mode", "device", "precision", "implementation")
    return {tuple(result[key] for key in keys): result for result in report["results"]}  # type: ignore[misc]


def rows(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def process_state() -> dict[str, Any]:
    """Return what a bench changes and must restore."""
    import matplotlib
    import ultralytics.engine.trainer as trainer
    from ultralytics.utils import callbacks, checks, torch_utils

    return {
        "patches": (process_patches().is_on, sorted(process_patches().active)),
        "functions": (trainer.check_amp, checks.check_amp, callbacks.add_integration_callbacks),
        "select_device": torch_utils.select_device,
        "level": logging.getLogger("ultralytics").level,
        "warnings": list(warnings.filters),
        "environment": {k: v for k, v in os.environ.items() if k not in SET_BY_OTHERS},
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "torch": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
        "backend": matplotlib.get_backend(),
        "streams": (sys.stdout, sys.stderr),
        "device": torch.xpu.current_device() if torch.xpu.device_count() else None,
    }


# Whole runs


@no_xpu
def test_run_without_xpu_measures_cpu_and_says_why(
    xpu: torch.device, short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process_patches().apply()
    unset_deterministic()  # which the training of another test may have left on
    before = {key: value for key, value in process_state().items() if key != "select_device"}
    assert main([*TINY, "--repeats", "2", "--precision", "fp32,fp16"]) == 0
    after = process_state()
    assert {key: after[key] for key in before} == before
    assert after["select_device"].__globals__["__name__"] == "yolo_xpu_trainer.patches"

    printed = capsys.readouterr().out
    assert "can't measure xpu: PyTorch has XPU support, but the driver shows no XPU" in printed
    assert "Caching" not in printed
    directory = tmp_path / "runs" / "xpu-bench"
    assert sorted(path.name for path in directory.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    report = read(directory)
    assert report["schema"] == 1
    assert report["simulated"] is False
    assert report["settings"]["batch"] == 64
    assert set(report["measured"]) == {"train", "infer"}
    assert {"os", "python", "torch", "ultralytics", "yolo_xpu_trainer", "devices"} <= set(report["environment"])
    assert any("driver shows no XPU" in note for note in report["notes"])
    results = by_case(report)
    assert set(results) == {(m, "cpu", p, "both") for m in ("train", "infer") for p in ("fp32", "fp16")}
    for (_, _, precision, _), result in results.items():
        if precision == "fp16":
            assert (result["status"], result["images_per_second"]) == ("skipped", None)
            assert "only supports fp32" in result["reason"]
            continue
        speed = result["images_per_second"]
        assert 0 < speed["least"] <= speed["median"] <= speed["greatest"]
        assert len(speed["windows"]) == len(result["windows"]) == 2
        for window, images_per_second in zip(result["windows"], speed["windows"], strict=True):
            assert (window["images"], window["steps"], window["warmup_steps"]) == (64, 1, 2)
            assert images_per_second == pytest.approx(64 / window["seconds"])
            assert window["memory"] == window["telemetry"] == {}
    assert results["train", "cpu", "fp32", "both"]["windows"][0]["optimizer_steps"] == [1, 1]

    text = (directory / "bench.md").read_text(encoding="utf-8")
    assert text in printed
    for row, mode in zip(rows(text), ("train", "infer"), strict=True):
        assert row[3:7] == [
            torch.__version__,
            report["environment"]["ultralytics"],
            version("yolo-xpu-trainer"),
            f"{mode} fp32",
        ]
        assert re.fullmatch(r"[\d.]+ \([\d.]+-[\d.]+\)", row[7])
        assert row[8:] == ["same code", "-"]
    picture = cv2.imread(str(directory / "bench.png"))
    assert min(picture.shape[:2]) > 600
    assert picture.std() > 20


@arc_a770
def test_run_on_gpu_without_fp64(
    xpu: torch.device, short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain Ultralytics fails in fp16 and refuses bf16; both are reported, and the run continues."""
    before = process_state()
    assert main([*TINY, "--devices", "xpu", "--modes", "train", "--output", "out"]) == 0
    after = process_state()
    del before["select_device"], after["select_device"]  # made anew when the changes are applied again
    assert after == before

    report = read(tmp_path / "out")
    results = by_case(report)
    plain = {p: results["train", "xpu:0", p, "plain"] for p in ("fp32", "fp16", "bf16")}
    ours = {p: results["train", "xpu:0", p, "ours"] for p in ("fp32", "fp16", "bf16")}
    assert [plain[p]["status"] for p in plain] == ["measured", "failed", "skipped"]
    assert plain["fp16"]["reason"] == "RuntimeError: Required aspect fp64 is not supported on the device"
    assert "refuses it" in plain["bf16"]["reason"]
    assert [ours[p]["status"] for p in ours] == ["measured"] * 3
    for result in (plain["fp32"], *ours.values()):
        (window,) = result["windows"]
        assert 0 < window["memory"]["allocated"] <= window["memory"]["reserved"]
        assert window["optimizer_steps"][1] == 1
    # autocast in 16 bits keeps half the activations' bytes
    assert peak(ours["bf16"]) < 0.9 * peak(ours["fp32"])
    assert peak(ours["fp32"]) == pytest.approx(peak(plain["fp32"]), rel=0.1)

    assert report["simulated"] is True
    assert report["environment"]["devices"][0]["has_fp64"] is False
    printed = capsys.readouterr().out
    text = (tmp_path / "out" / "bench.md").read_text(encoding="utf-8")
    assert "SIMULATED XPU: no hardware was measured" in printed
    assert "**Simulated XPU: no hardware was measured.**" in text
    assert [row[6:8] for row in rows(text)][1:] == [["train fp16", "failed"], ["train bf16", "-"]]
    assert {(row[0], row[1]) for row in rows(text)} == {("Intel Arc A770 Graphics (simulated)", "1.6.33578+51")}
    assert len([note for note in report["notes"] if "provides no readings of" in note]) == 1


def peak(result: dict[str, Any]) -> int:
    return int(result["windows"][0]["memory"]["allocated"])


@pytest.mark.xpu_hardware
def test_run_on_xpu(xpu: torch.device, short: None, tmp_path: Path) -> None:
    before = process_state()["device"]
    assert main([*TINY, "--devices", "xpu", "--precision", "fp32", "--modes", "infer,train", "--output", "out"]) == 0
    assert process_state()["device"] == before
    report = read(tmp_path / "out")
    assert {result["status"] for result in report["results"] if result["implementation"] == "ours"} == {"measured"}
    assert not any(result["status"] == "failed" for result in report["results"])


@pytest.mark.xpu_profile("max-1550")
@pytest.mark.skipif(torch._C._has_xpu and not xpu_simulator.is_active(), reason="two simulated XPUs are needed")
@pytest.mark.needs("torch.distributed.is_xccl_available")
def test_several_xpus_are_compared_with_the_first_one_alone(
    xpu: torch.device, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XPU_SIMULATOR", "max-1550")  # in their processes
    arguments = ["--devices", "xpu:0,1", "--precision", "fp32", "--batch", "4", "--steps", "2", "--output", "out"]
    assert main([*TINY, *arguments]) == 0
    report = read(tmp_path / "out")
    found = by_case(report)
    assert ("infer", "xpu:0,1", "fp32", "ours") not in found
    for code in ("plain", "ours"):
        alone, together = (found["train", name, "fp32", code] for name in ("xpu:0", "xpu:0,1"))
        assert together["status"] == "measured", together["reason"]
        (window,) = together["windows"]
        assert window["images"] == 8 * window["steps"]
        assert window["optimizer_steps"] == [window["steps"] // 8] * 2
        expected = together["images_per_second"]["median"] / alone["images_per_second"]["median"]
        assert together["scaling"] == pytest.approx(expected)
        assert alone["scaling"] is None
        assert any(note.startswith(f"{code} train xpu:0,1 fp32: {expected:.2f} times") for note in report["notes"])
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "torch.distributed.run" in child.cmdline()]


def test_an_error_of_several_xpus_is_their_result() -> None:
    lines = ["[rank0]: Traceback", "[rank0]: ValueError: no such data", "torch.distributed.ChildFailedError: "]
    assert several._why("\n".join(lines)) == "ValueError: no such data"
    assert several._why("") == "its processes didn't come to an end"


def test_out_of_memory_is_a_failure(
    xpu: torch.device, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer continues with half the batch, which isn't what was requested."""
    begin = timing._Callbacks.batch_start
    orders = iter([50])  # index of a kernel in the first forward pass

    def order(self: timing._Callbacks, trainer: Any) -> None:
        begin(self, trainer)
        for launch in orders:
            faults.out_of_memory(at_launch=launch)

    monkeypatch.setattr(timing._Callbacks, "batch_start", order)
    arguments = ["--devices", "xpu", "--precision", "fp32", "--modes", "train", "--output", "out"]
    assert main([*TINY, *arguments]) == 0
    report = read(tmp_path / "out")
    plain, ours = (by_case(report)["train", "xpu:0", "fp32", code] for code in ("plain", "ours"))
    assert plain["reason"] == "out of memory with batch 64 (the trainer continued with 32)"
    assert (plain["status"], plain["windows"]) == ("failed", [])
    assert ours["status"] == "measured"


@pytest.mark.parametrize("task", ["11n-seg", "11n-pose", "11n-obb", "11n-cls", "26n-sem", "26n-depth"])
@no_xpu
def test_every_task_trains(
    task: str, xpu: torch.device, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic_data, "MIN_IMAGES", 1)
    arguments = ["--model", f"yolo{task}.yaml", "--devices", "cpu", "--precision", "fp32", "--modes", "train"]
    assert main([*TINY, *arguments, "--output", "out"]) == 0
    (result,) = read(tmp_path / "out")["results"]
    assert (result["status"], result["reason"]) == ("measured", "")


# Order and failures


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record measurements instead of running them: 100 images per second, 150 for ours."""
    done: list[tuple[str, str]] = []

    def note(job: Any, case: Case, implementation: str) -> Window:
        import ultralytics.engine.trainer as trainer

        assert process_patches().is_on is (implementation == "ours")
        assert trainer.check_amp(None) is True
        done.append((str(case), implementation))
        return Window(300, 2.0 if implementation == "ours" else 3.0, 4, 1)

    monkeypatch.setattr(measuring, "train", note)
    monkeypatch.setattr(measuring, "infer", note)
    return done


def test_implementations_alternate(xpu: torch.device, recorded: list[tuple[str, str]], tmp_path: Path) -> None:
    process_patches().apply()
    assert main([*TINY, "--repeats", "2", "--devices", "cpu,xpu,xpu:0", "--precision", "fp32", "--output", "out"]) == 0
    turns = ["plain", "ours", "plain", "ours"]
    assert recorded == [
        *[("train cpu fp32", "both")] * 2,
        *[("train xpu:0 fp32", turn) for turn in turns],
        *[("infer cpu fp32", "both")] * 2,
        *[("infer xpu:0 fp32", turn) for turn in turns],
    ]
    row = rows((tmp_path / "out" / "bench.md").read_text(encoding="utf-8"))[1]
    assert row[7:] == ["100 (100-100)", "150 (150-150)", "1.50"]


def test_compiled_cases_follow_uncompiled_ones(
    xpu: torch.device, recorded: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "problem", lambda index: None)
    assert main([*TINY, "--devices", "xpu", "--precision", "fp32", "--modes", "infer", "--compile"]) == 0
    assert recorded == [(f"infer xpu:0 fp32{c}", who) for c in ("", " compiled") for who in ("plain", "ours")]


def test_compiled_cases_are_skipped_with_reason(
    xpu: torch.device, recorded: list[tuple[str, str]], tmp_path: Path
) -> None:
    arguments = ["--devices", "xpu", "--precision", "fp32", "--modes", "train", "--compile", "--output", "out"]
    assert main([*TINY, *arguments]) == 0
    assert recorded == [("train xpu:0 fp32", who) for who in ("plain", "ours")]
    left_out = [r for r in json.loads((tmp_path / "out" / "bench.json").read_text())["results"] if r["compile"]]
    assert len(left_out) == 2
    assert all("Triton" in r["reason"] for r in left_out)


def test_switches_take_turns_with_the_defaults(
    xpu: torch.device, recorded: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_XPU_CAST_WEIGHTS", "1")
    given: list[Any] = []
    note: Callable[..., Window] = measuring.train

    def remember(job: Any, case: Case, implementation: str) -> Window:
        given.append((implementation, job.arguments))
        return note(job, case, implementation)

    monkeypatch.setattr(measuring, "train", remember)
    arguments = ["--repeats", "2", "--devices", "cpu,xpu", "--precision", "fp32", "--switches", "--output", "out"]
    assert main([*TINY, *arguments]) == 0
    tried = ["channels_last=False", "pin_memory=False", "non_blocking=False", "fused_optimizer=False"]
    tried += ["prefetch=0", "prefetch=2", "fewer_syncs=False", "foreground_once=False", "host_counters=False"]
    tried += ["loss_parts=False"]
    defaults = [("train xpu:0 fp32", who) for who in ("plain", "ours")]
    deterministic = [("train xpu:0 fp32 deterministic=False", who) for who in ("plain", "ours")]
    once = recorded[2 : 2 + 4 + len(tried)]
    assert once[:4] == [*defaults, *deterministic]
    assert sorted(once[4:]) == sorted((f"train xpu:0 fp32 xpu_{switch}", "ours") for switch in tried)
    assert recorded[2 + len(once) : 2 + 2 * len(once)] == once
    assert not any("=" in case for case, _ in recorded if "infer" in case or "cpu" in case)
    assert dict(given) == {"both": {}, "plain": {}, "ours": {"xpu_tuned": False}}
    report = read(tmp_path / "out")
    assert "xpu_cast_weights isn't tried, because YOLO_XPU_CAST_WEIGHTS is set." in report["notes"]
    assert {"xpu_prefetch": 2} in [result["arguments"] for result in report["results"]]
    text = (tmp_path / "out" / "bench.md").read_text(encoding="utf-8")
    assert "ratio of a switch: to the same code without it" in text
    cells = {row[6]: row[7:] for row in rows(text) if "xpu:0" not in row[6] and "B580" in row[0]}
    assert cells["train fp32"] == ["100 (100-100)", "150 (150-150)", "1.50"]
    assert cells["train fp32 deterministic=False"] == ["100 (100-100)", "150 (150-150)", "1.00"]
    assert cells["train fp32 xpu_prefetch=0"] == ["-", "150 (150-150)", "1.00"]


def test_switches_without_a_training_on_an_xpu_are_a_note(
    xpu: torch.device, recorded: list[tuple[str, str]], tmp_path: Path
) -> None:
    arguments = ["--devices", "xpu", "--precision", "fp32", "--modes", "infer", "--switches", "--output", "out"]
    assert main([*TINY, *arguments]) == 0
    assert recorded == [("infer xpu:0 fp32", who) for who in ("plain", "ours")]
    assert "--switches adds nothing here: switches are of trainings on an XPU." in read(tmp_path / "out")["notes"]


@pytest.mark.slow
def test_a_switch_reaches_the_training(
    xpu: torch.device, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = ("CAST_WEIGHTS", "PIN_MEMORY", "NON_BLOCKING", "FUSED_OPTIMIZER", "PREFETCH", "FEWER_SYNCS")
    for name in (*others, "FOREGROUND_ONCE", "HOST_COUNTERS", "LOSS_PARTS"):
        monkeypatch.setenv(f"YOLO_XPU_{name}", "1")
    monkeypatch.setattr(synthetic_data, "MIN_IMAGES", 1)
    seen: list[tuple[str, bool, bool]] = []
    begin = timing._Callbacks.batch_start

    def look(self: timing._Callbacks, trainer: Any) -> None:
        begin(self, trainer)
        weight = next(p for p in trainer.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
        last = weight.is_contiguous(memory_format=torch.channels_last)
        seen.append((str(self._case.switch), torch.are_deterministic_algorithms_enabled(), last))

    monkeypatch.setattr(timing._Callbacks, "batch_start", look)
    arguments = ["--devices", "xpu", "--precision", "bf16", "--modes", "train", "--switches", "--output", "out"]
    assert main([*TINY, *arguments]) == 0
    results = read(tmp_path / "out")["results"]
    assert [r["status"] for r in results if r["implementation"] == "ours"] == ["measured"] * 3
    assert {("deterministic=False", False, True), ("xpu_channels_last=False", True, False)} <= set(seen)
    assert ("None", True, True) in seen


def test_training_with_bf16_weights_is_a_reference(
    xpu: torch.device, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic_data, "MIN_IMAGES", 1)
    seen: dict[tuple[str, bool], list[Any]] = {}
    end = timing._Callbacks.batch_end

    def look(self: timing._Callbacks, trainer: Any) -> None:
        weight, average = (next(model.parameters()) for model in (trainer.model, trainer.ema.ema))
        distance = (weight.float() - average).abs().max().item()
        state = trainer.optimizer.state
        moments = {value["exp_avg"].dtype for value in state.values()}
        key = self._case.precision, getattr(trainer, "xpu", None) is not None
        seen[key] = [weight.dtype, average.dtype, moments, bool(torch.isfinite(trainer.loss).all()), distance < 1e-2]
        end(self, trainer)

    monkeypatch.setattr(timing._Callbacks, "batch_end", look)
    arguments = ["--devices", "xpu", "--precision", "bf16", "--modes", "train", "--pure-bf16", "--output", "out"]
    assert main([*TINY, *arguments]) == 0
    report = read(tmp_path / "out")
    reference = by_case(report)["train", "xpu:0", "pure bf16", "plain"]
    assert (reference["status"], reference["reason"]) == ("measured", "")
    assert ("train", "xpu:0", "pure bf16", "ours") not in by_case(report)
    assert seen["pure bf16", False] == [torch.bfloat16, torch.float32, {torch.bfloat16}, True, True]
    assert seen["bf16", True] == [torch.float32, torch.float32, {torch.float32}, True, True]
    assert any(note.startswith("pure bf16: Ultralytics' loop with weights") for note in report["notes"])


def test_a_reference_without_bf16_is_a_note(xpu: torch.device, recorded: list[tuple[str, str]], tmp_path: Path) -> None:
    arguments = ["--devices", "xpu", "--precision", "fp32", "--modes", "train", "--pure-bf16", "--output", "out"]
    assert main([*TINY, *arguments]) == 0
    assert recorded == [("train xpu:0 fp32", who) for who in ("plain", "ours")]
    assert "--pure-bf16 adds nothing here: it stands beside bf16 on an XPU." in read(tmp_path / "out")["notes"]


def test_plain_is_skipped_before_8_4_111(
    xpu: torch.device, recorded: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "knows_accelerators", lambda: False)
    assert main([*TINY, "--devices", "xpu", "--precision", "fp16", "--output", "out"]) == 0
    assert {who for _, who in recorded} == {"ours"}
    plain = by_case(read(tmp_path / "out"))["train", "xpu:0", "fp16", "plain"]
    assert plain["status"] == "skipped"
    assert "has no XPU support; versions from 8.4.111 on have" in plain["reason"]


def test_failure_is_reported_once_and_not_repeated(
    xpu: torch.device, recorded: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note: Callable[..., Window] = measuring.train

    def fail(job: Any, case: Case, implementation: str) -> Window:
        if implementation == "plain":
            recorded.append(("failed", case.precision))
            raise ValueError("\nit broke\nand here is why")
        return note(job, case, implementation)

    monkeypatch.setattr(measuring, "train", fail)
    arguments = ["--repeats", "3", "--devices", "xpu", "--precision", "fp32,fp16", "--modes", "train"]
    assert main([*TINY, *arguments, "--output", "out"]) == 0
    assert [done for done in recorded if done[0] == "failed"] == [("failed", "fp32"), ("failed", "fp16")]
    assert len(recorded) == 2 + 2 * 3
    report = read(tmp_path / "out")
    assert report["notes"][-1] == "plain train xpu:0 fp32, plain train xpu:0 fp16 failed: ValueError: it broke"


def test_interruption_keeps_results(
    xpu: torch.device, recorded: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> Window:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "infer", interrupt)
    assert main([*TINY, "--precision", "fp32", "--output", "out"]) == 130
    report = read(tmp_path / "out")
    assert {result["mode"] for result in report["results"]} == {"train"}
    assert any(note.startswith("interrupted") for note in report["notes"])
    assert not (tmp_path / "runs").exists()


# Refusals


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message of a refusal."""
    try:
        code = main([*TINY, *arguments])
    except SystemExit as ended:
        code = int(str(ended.code))
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == (69 if "Asked for" in said else 2)
    return said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--precision", "fp32,fp8"],
            "argument --precision: 'fp8' was given; it must be a comma-separated list of fp32, fp16, bf16",
        ),
        (
            ["--devices", "cpu,abacus"],
            "argument --devices: 'abacus' was given; it must be a comma-separated list of cpu",
        ),
        (["--devices", ","], "argument --devices: nothing was given; it must be a comma-separated list of cpu, xpu"),
        (
            ["--modes", "train,val"],
            "argument --modes: 'val' was given; it must be a comma-separated",
        ),
        (["--batch", "0"], "argument --batch: '0' was given; it must be an integer of at least 1"),
        (["--batch", "-4"], "argument --batch: '-4' was given"),
        (["--steps", "many"], "argument --steps: 'many' was given; it must be an integer of at least 1"),
        (["--repeats", "0"], "argument --repeats: '0' was given"),
        (
            ["--imgsz", "100"],
            "argument --imgsz: '100' was given; it must be an integer of at least 64 and a multiple of 32",
        ),
        (["--model", "yolo11n.onnx"], "argument --model: 'yolo11n.onnx' can't be trained"),
        (["--model", "nonsense.yaml"], "can't load --model 'nonsense.yaml' (FileNotFoundError"),
        (["--model", "nonsense.pt"], "can't load --model 'nonsense.pt'"),
        (["--devices", "cpu,xpu:7"], "Asked for xpu:7, but this process sees 1 XPU"),
    ],
)
def test_bad_values_are_refused(
    arguments: list[str], complaint: str, xpu: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(arguments, capsys).startswith(f"yolo-xpu bench: error: {complaint}")
    assert not list(tmp_path.iterdir())


@no_xpu
def test_missing_xpu_alone_is_refused(xpu: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--devices", "xpu"]) == 69
    assert "the driver shows no XPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom yolo_xpu_trainer.commands import main\n"
        "try:\n    main(['bench', '--help'])\n"
        "finally:\n    print([n for n in ('torch', 'ultralytics', 'numpy', 'cv2', 'rich') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Training is the complete loop" in done.stdout
    assert done.stdout.endswith("[]\n")


# Windows


class FakeTime:
    """A clock that stands still unless a test advances it."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(timing, "time", fake)
    monkeypatch.setattr(timers, "time", fake)
    return fake


def make_settings(**changed: Any) -> settings.Settings:
    parser = argparse.ArgumentParser()
    from yolo_xpu_trainer.commands import bench

    bench.add_arguments(parser)
    words = [word for k, v in changed.items() for word in (f"--{k}", str(v))]
    return settings.Settings.from_arguments(parser.parse_args(words))


def run_clock(fake: FakeTime, seconds: float, cycle: int = 1, **changed: Any) -> Window:
    """Step until the window ends; each step takes `seconds`, the first one 100 more."""
    sampler: Any = SimpleNamespace(start=lambda: None, stop=dict)
    clock = timing.Clock(Case("train", CPU, "fp32"), make_settings(**changed), sampler, int)
    fake.now += 100
    while True:
        fake.now += seconds
        if window := clock.step(cycle):
            return window


def test_window_starts_after_warmup(fake_time: FakeTime) -> None:
    window = run_clock(fake_time, 0.1, steps=10, batch=16)
    assert (window.warmup_steps, window.steps, window.images) == (settings.WARMUP, 10, 160)
    assert window.images_per_second == pytest.approx(160)


def test_window_has_whole_optimizer_steps(fake_time: FakeTime) -> None:
    assert run_clock(fake_time, 0.1, cycle=4, steps=10).steps == 12


def test_slow_steps_end_warmup_and_window_early(fake_time: FakeTime) -> None:
    window = run_clock(fake_time, 6, cycle=4, steps=100, batch=8)
    assert (window.warmup_steps, window.steps) == (2, 4)
    assert window.images_per_second == pytest.approx(8 / 6)


def trainer(amp: object, enabled: bool = True, xpu: str = "") -> SimpleNamespace:
    run = SimpleNamespace(precision=SimpleNamespace(name=xpu, reason="of a check")) if xpu else None
    return SimpleNamespace(args=SimpleNamespace(amp=amp), amp=enabled, xpu=run)


@pytest.mark.parametrize(
    ("running", "precision", "sound"),
    [
        (trainer(True), "fp16", True),
        (trainer(True, enabled=False), "fp16", False),
        (trainer(False, enabled=False), "fp32", True),
        (trainer("bf16"), "bf16", True),
        (trainer(True, xpu="bf16"), "bf16", True),
        (trainer(True, enabled=False, xpu="fp32"), "fp16", False),
    ],
)
def test_precision_is_checked(running: SimpleNamespace, precision: str, sound: bool) -> None:
    case = Case("train", GPU, precision)
    if sound:
        timing._check_precision(running, case)
    else:
        with pytest.raises(timing.Stop) as stopped:
            timing._check_precision(running, case)
        assert "ran in fp32" in stopped.value.reason


def test_compilation_is_checked() -> None:
    with pytest.raises(timing.Stop):
        timing._check_compiled(torch.nn.Identity(), Case("train", GPU, "fp32", compile=True))
    timing._check_compiled(torch.compile(torch.nn.Identity()), Case("train", GPU, "fp32", compile=True))
    timing._check_compiled(torch.nn.Identity(), Case("train", GPU, "fp32"))


# Isolation


@pytest.fixture
def rows_afterwards() -> Iterator[None]:
    yield
    process_patches().apply()


def test_changes_are_restored(rows_afterwards: None) -> None:
    patches = process_patches()
    for active in (True, False):
        (patches.apply if active else patches.restore)()
        with plain_ultralytics():
            assert not patches.is_on
            assert not patches.active
        assert patches.is_on is active
        with with_package(), quiet():
            assert patches.is_on
        assert patches.is_on is active


def test_state_is_restored_after_an_error(rows_afterwards: None) -> None:
    before = process_state()
    with pytest.raises(ZeroDivisionError), with_package(), quiet():
        print(1 / 0)
    assert process_state() == before


def test_integration_callbacks_are_suppressed() -> None:
    from ultralytics.utils import callbacks

    def fail(*args: object) -> None:
        raise AssertionError("told")

    instance = SimpleNamespace(callbacks={"on_train_start": [fail]})
    with plain_ultralytics(), quiet():
        callbacks.add_integration_callbacks(instance)
    assert instance.callbacks == {"on_train_start": [fail]}


def test_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n  a\nb")) == "ValueError: a"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(first_line(ValueError("word " * 1000))) <= 200


# Telemetry


@pytest.mark.needs("torch.xpu.utilization", "torch.xpu.power_draw")
def test_telemetry_is_the_median_of_readings(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([90.0, 97.0, 20.0, 98.0])

    def utilization(device: int) -> float:
        time.sleep(0.01)
        return next(told)  # raises at the end

    monkeypatch.setattr(torch.xpu, "utilization", utilization)
    monkeypatch.setattr(torch.xpu, "power_draw", lambda device: 150.0)
    names, note = telemetry.readable(0)
    assert names == ["utilization", "power_draw"]
    assert note.startswith("xpu:0 provides no readings of temperature, clock_rate, memory_usage (ImportError: pyzes")
    sampler = telemetry.Sampler(0, names)
    sampler.start()
    time.sleep(0.7)
    assert sampler.stop() == {"utilization": 97.0, "power_draw": 150.0}
    assert sampler.stop() == {"utilization": 97.0, "power_draw": 150.0}


def test_telemetry_without_torch_functions_is_empty(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in telemetry.READINGS:
        monkeypatch.delattr(torch.xpu, name, raising=False)
    names, note = telemetry.readable(0)
    assert names == []
    assert "has no such function" in note
    sampler = telemetry.Sampler(0, names)
    sampler.start()
    assert sampler.stop() == {}


# Data


def test_data_set_has_whole_batches_and_is_deterministic(tmp_path: Path) -> None:
    model: Any = SimpleNamespace(task="detect", names=["a", "b", "c"], keypoints=(17, 3))
    contents = []
    for name in ("a", "b"):
        description = measuring.write_data(tmp_path / name, model, batch=48, imgsz=64)
        images = sorted((description.parent / "images" / "train").iterdir())
        assert len(images) == 144
        contents.append([path.read_bytes() for path in images])
    assert contents[0] == contents[1]
    assert cv2.imread(str(images[0])).shape == (64, 64, 3)
    labels = [np.loadtxt(path, ndmin=2) for path in (description.parent / "labels" / "train").iterdir()]
    assert set(np.vstack(labels)[:, 0]) == {0, 1, 2}
    assert 5 < np.mean([len(label) for label in labels]) < 10
    for _, centres, sides in (np.split(label, (1, 3), axis=1) for label in labels):
        assert (centres - sides / 2).min() > -1e-5
        assert (centres + sides / 2).max() < 1 + 1e-5


# The report


def make_report(*results: Result, **changed: Any) -> Report:
    environment = {"os": "Ubuntu 24.04", "torch": "2.14.1+xpu", "ultralytics": "8.4.190", "yolo_xpu_trainer": "0.1.0"}
    return Report(make_settings(**changed), environment, [CPU, GPU], list(results))


def window(images_per_second: float, **more: Any) -> Window:
    return Window(images=512, seconds=512 / images_per_second, steps=32, warmup_steps=8, **more)


def test_figures_have_three_digits() -> None:
    assert [figure(value) for value in (0.5, 9.996, 12.34, 99.96, 1234.5)] == ["0.50", "10.0", "12.3", "100", "1234"]


def test_table_row_has_speed_memory_and_telemetry() -> None:
    from rich.console import Console

    case = Case("train", GPU, "bf16")
    more = {"memory": {"allocated": 2 << 30, "reserved": 3 << 30}, "telemetry": {"utilization": 96.7}}
    ours = Result(case, "ours", windows=[window(speed, **more) for speed in (200, 210, 190)])
    plain = Result(case, "plain", windows=[window(160) for _ in range(3)])
    console = Console(width=80, file=io.StringIO())
    console.print(table(make_report(plain, ours), "train"))
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert ["xpu:0", "bf16", "plain", "160", "160-160", "-", "-", "-", "-"] in lines
    assert ["ours", "200", "190-210", "1.25", "3.00", "97", "-"] in lines
    assert "Simulated" not in markdown(make_report(plain, ours))


def test_images_per_joule_are_told_where_the_device_tells_its_power() -> None:
    from rich.console import Console

    case = Case("train", GPU, "bf16")
    ours = Result(case, "ours", windows=[window(s, telemetry={"power_draw": w}) for s, w in ((200, 100), (300, 100))])
    plain = Result(case, "plain", windows=[window(160)])
    report = make_report(plain, ours)
    console = Console(width=100, file=io.StringIO())
    console.print(table(report, "train"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "img/J: images per joule" in " ".join(text.split())
    lines = [line.split() for line in text.splitlines()]
    assert ["xpu:0", "bf16", "plain", "160", "-", "-", "-", "-", "-", "-"] in lines
    assert ["ours", "250", "200-300", "1.56", "-", "-", "100", "2.50"] in lines
    assert rows(markdown(report))[0][-1] == "- / 2.50"
    assert [result["images_per_joule"] for result in report.as_dict()["results"]] == [None, 2.5]


def test_ultralytics_warnings_become_footnotes(log: list[logging.LogRecord]) -> None:
    logger = logging.getLogger("ultralytics")
    with plain_ultralytics(), quiet() as warned:
        for text in ("\x1b[34mXPU:\x1b[0m it is slow\nbecause", "XPU: it is slow", "cache='ram' may produce"):
            logger.warning(text)
        logger.info("loading")
    assert warned == ["XPU: it is slow"]
    assert not log
    logger.info("again")
    assert [record.getMessage() for record in log] == ["again"]
    results = [Result(Case("train", GPU, p), "ours", windows=[window(100)], warnings=warned) for p in ("fp32", "fp16")]
    expected = "ours train xpu:0 fp32, ours train xpu:0 fp16: Ultralytics warned: XPU: it is slow"
    assert make_report(*results).footnotes() == [expected]


def test_doubtful_figures_have_footnotes() -> None:
    waiting = [window(100, waiting_seconds=2.0, optimizer_steps=(7, 8)) for _ in range(3)]
    fine = [window(100, waiting_seconds=0.1, optimizer_steps=(8, 8))]
    notes = make_report(
        Result(Case("train", GPU, "fp16"), "ours", windows=waiting),
        Result(Case("train", GPU, "fp32"), "ours", windows=fine),
    ).footnotes()
    assert len(notes) == 2
    assert "ours train xpu:0 fp16 spent 39% of its time waiting for the data loader" in notes[0]
    assert "ours train xpu:0 fp16 took 21 of 24 optimizer steps" in notes[1]


def test_chart_says_that_a_device_is_simulated() -> None:
    from yolo_xpu_trainer.commands.bench.chart import _texts

    title, details = _texts(make_report(), characters=80)
    assert title == "yolo11n, imgsz 640, batch 16 on Intel Arc B580 Graphics"
    assert "driver 1.6.33578+51" in details
    report = make_report()
    report.devices[1] = Device("xpu:0", "Intel Arc B580 Graphics", index=0, simulated=True)
    title, _ = _texts(report, characters=80)
    assert title.splitlines()[0] == "SIMULATED XPU: no hardware was measured"
    assert title.endswith("(simulated)")


# Several machines


def bench_file(path: Path, *results: Result, title: str = GPU.title, torch: str = "2.14.1+xpu", **changed: Any) -> Path:
    """Write a bench.json of one XPU and one processor."""
    report = make_report(*results, **changed)
    report.environment["torch"] = torch
    devices = [("cpu", CPU.title, "-"), ("xpu:0", title, GPU.driver)]
    report.environment["devices"] = [
        {"name": name, "title": model, "driver": driver, "simulated": False} for name, model, driver in devices
    ]
    path.parent.mkdir(parents=True)
    path.write_text(as_json(report), encoding="utf-8")
    return path


def trained(ours: float, plain: float, **of_ours: Any) -> list[Result]:
    case = Case("train", GPU, "bf16")
    return [Result(case, "plain", windows=[window(plain)]), Result(case, "ours", windows=[window(ours, **of_ours)])]


def printed_cells(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]


def test_files_of_machines_stand_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    host = Result(Case("train", CPU, "fp32"), "both", windows=[window(4)])
    failed = Result(Case("infer", GPU, "fp16"), "ours", status="failed")
    first = bench_file(tmp_path / "a" / "bench.json", host, *trained(200, 160, telemetry={"power_draw": 100.0}))
    second = bench_file(
        tmp_path / "b" / "bench.json", *trained(300, 250), failed, title="Intel Arc B60 Graphics", torch="2.15.0+xpu"
    )
    other = bench_file(tmp_path / "c" / "bench.json", *trained(90, 80), batch=8)
    assert main(["bench", "--compare", str(first), str(second), str(other)]) == 0
    text = capsys.readouterr().out
    cells = printed_cells(text)
    # the processors' columns follow those of the GPUs
    assert ["code", *[GPU.title, "Intel Arc B60 Graphics", GPU.title], *[CPU.title] * 3] in cells
    assert ["torch", "2.14.1+xpu", "2.15.0+xpu", "2.14.1+xpu", "2.14.1+xpu", "2.15.0+xpu", "2.14.1+xpu"] in cells
    assert ["driver", *[GPU.driver] * 3, *["-"] * 3] in cells
    assert ["train bf16", "plain", "160", "250 (1.56 x)", "80.0", "-", "-", "-"] in cells
    assert ["ours", "200", "300 (1.50 x)", "90.0", "-", "-", "-"] in cells
    assert ["ours / plain", "1.25", "1.20", "1.12", "-", "-", "-"] in cells
    assert ["infer fp16", "ours", "-", "failed", "-", "-", "-", "-"] in cells
    assert ["train fp32", "both", "-", "-", "-", "4.00", "-", "-"] in cells
    assert ["ours, images/J", "2.00", "-", "-", "-", "-", "-"] in cells
    assert "Other models or sizes were measured in some files" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (None, "it can't be read (No such file or directory)"),
        (b"\x89PNG\r\n\x1a\n", "it isn't JSON ("),
        (b"images per second", "it isn't JSON ("),
        (b"[1, 2]", "it is JSON, but not the results of a bench"),
        (b'{"schema": 1, "choices": []}', "it is JSON, but not the results of a bench"),
        (
            b'{"schema": 2, "environment": {}, "settings": {}, "results": []}',
            "its schema is 2, and this release reads 1; another release wrote it",
        ),
        (
            b'{"schema": 1, "environment": {"devices": [{"name": "cpu"}]}, "settings": {}, "results": []}',
            "part of a bench's results is missing or damaged (KeyError:",
        ),
    ],
)
def test_a_file_that_is_no_result_of_a_bench_is_refused(
    content: bytes | None, seen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = bench_file(tmp_path / "a" / "bench.json", *trained(200, 160))
    path = tmp_path / "other.json"
    if content is not None:
        path.write_bytes(content)
    assert main(["bench", "--compare", str(sound), str(path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"yolo-xpu bench: error: can't compare {path}: {seen}")
    assert "Name files bench.json" in told.err


def test_comparing_imports_no_pytorch(tmp_path: Path) -> None:
    path = bench_file(tmp_path / "a" / "bench.json", *trained(200, 160))
    code = (
        "import sys\nfrom yolo_xpu_trainer.commands import main\n"
        f"main(['bench', '--compare', {str(path)!r}])\nprint([n for n in ('torch', 'ultralytics') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
