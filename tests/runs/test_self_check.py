"""A training under each fault of a device ends as designed: without what is wrong, or before its first batch."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.utils.torch_utils import ModelEMA

from xpu_simulator import quirks
from yolo_xpu_trainer import Check, WrongResultsError, devices
from yolo_xpu_trainer.errors import OptionValueError
from yolo_xpu_trainer.numerics import results
from yolo_xpu_trainer.own_code import source_of
from yolo_xpu_trainer.plugins import manager
from yolo_xpu_trainer.trainers import XPURTDETRTrainer

from ..conftest import Train, TrainingData
from .test_channels_last import in_channels_last, look, spatial

quirk = pytest.mark.xpu_quirks


def said(log: list[logging.LogRecord], text: str) -> list[str]:
    return [message for message in (record.getMessage() for record in log) if text in message]


def layouts(trainer: Any) -> set[bool]:
    return {in_channels_last(weight) for weight in spatial(list(trainer.model.parameters()))}


def losses(train: Train, see: Callable[[Any], None] = lambda trainer: None, **arguments: Any) -> list[float]:
    """Return the losses of a training, and call `see` as it begins."""
    seen: list[float] = []
    note = {"on_train_batch_end": lambda trainer: seen.append(float(trainer.loss.detach())), "on_train_start": see}
    train(callbacks=note, **{"amp": False, "val": False, "epochs": 2, **arguments})
    assert seen
    return seen


# Wrong where nothing can be done


@pytest.mark.parametrize(
    ("operator", "advice"),
    [
        pytest.param("topk(10) of 64×8400", "vllm-xpu-kernels#473", marks=quirk("wrong_topk")),
        pytest.param("nonzero", "torch-xpu-ops#4396", marks=quirk("short_nonzero")),
        pytest.param("topk(10) of 64×84, topk(1) of 16×8", "for-triton#7458", marks=quirk("wrong_small_topk")),
        pytest.param("softmax of 324, 400, 625 numbers", "torch-xpu-ops#4772", marks=quirk("wrong_softmax")),
        pytest.param("cumsum", "Take another release of PyTorch", marks=quirk("wrong_cumsum")),
    ],
)
def test_a_run_ends_before_its_first_batch(
    train: Train, log: list[logging.LogRecord], operator: str, advice: str
) -> None:
    with pytest.raises(WrongResultsError) as refused:
        train(callbacks={"on_pretrain_routine_start": lambda trainer: pytest.fail("it started")})
    text = str(refused.value)
    assert f"{operator} (" in text
    assert "differs from the CPU's " in text
    assert advice in text
    assert "--index-url https://download.pytorch.org/whl/xpu --upgrade" in text
    assert "dgpu-docs.intel.com" in text
    assert torch.__version__ in text
    assert devices.info(0).driver in text
    assert "xpu_self_check=False" in text
    assert refused.value.findings[0].check.operator == operator
    assert refused.value.device == "xpu:0 Intel Arc B580 Graphics"
    assert isinstance(refused.value, ArithmeticError)


@quirk("wrong_topk")
def test_a_refused_training_is_refused_again_without_comparing_anew(train: Train, log: list[logging.LogRecord]) -> None:
    for _ in range(2):
        with pytest.raises(WrongResultsError):
            train()
    assert len(said(log, "operators compared")) == 1


@quirk("wrong_topk")
@pytest.mark.parametrize("way", ["keyword", "variable", "blocked"])
def test_a_user_may_train_all_the_same(train: Train, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "variable":
        monkeypatch.setenv("YOLO_XPU_SELF_CHECK", "0")
    given: dict[str, Any] = {"keyword": {"xpu_self_check": False}, "blocked": {"xpu_plugins": "-self_check"}}.get(
        way, {}
    )
    assert train(val=False, **given).last.exists()


@quirk("wrong_foreach_lerp")
@pytest.mark.parametrize("averages_by_it", [True, False])
def test_what_averages_weights_must_be_right_only_where_it_is_used(
    train: Train, averages_by_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(self: Any, model: Any) -> None:
        """Average as Ultralytics 8.3.0 does."""
        self.updates += 1
        live = model.state_dict()
        for name, value in self.ema.state_dict().items():
            if value.dtype.is_floating_point:
                value.mul_(0.5).add_(live[name].detach(), alpha=0.5)

    if averages_by_it and "_foreach_lerp_" not in source_of(ModelEMA.update):
        pytest.skip("this Ultralytics averages in another way")
    if not averages_by_it:
        monkeypatch.setattr(ModelEMA, "update", update)
    with pytest.raises(WrongResultsError, match="_foreach_lerp_") if averages_by_it else nullcontext():
        assert train(val=False, optimizer="SGD").last.exists()


@quirk("wrong_grid_sample")
def test_what_rt_detr_samples_by_ends_its_trainings_and_no_others(train: Train, data: TrainingData) -> None:
    assert train(val=False).last.exists()
    with pytest.raises(WrongResultsError, match="grid_sample"):
        XPURTDETRTrainer(overrides={"model": "rtdetr-l.yaml", "data": data("detect"), "device": "xpu"})


# Wrong where it can be gone round


@quirk("wrong_foreach_copy")
def test_weights_are_rounded_one_by_one(train: Train, log: list[logging.LogRecord]) -> None:
    ours = losses(train, amp="bf16")
    (line,) = said(log, "Each weight is rounded by itself")
    assert "because weights rounded together (bfloat16) differs from the CPU's by 1" in line
    assert ours == losses(train, amp="bf16", xpu_cast_weights=False)


@pytest.mark.slow
@quirk("wrong_foreach_copy")
def test_musgd_updates_weights_as_ultralytics_does(train: Train, log: list[logging.LogRecord]) -> None:
    pytest.importorskip("ultralytics.optim.muon")
    ours = losses(train, optimizer="MuSGD")
    assert len(said(log, "MuSGD updates weights as Ultralytics does, because")) == 1
    assert ours == losses(train, optimizer="MuSGD", xpu_plugins="-musgd")


@pytest.mark.slow
@quirk("wrong_batch_norm")
def test_a_batch_norm_of_16_bits_that_is_wrong_is_not_taken(train: Train, log: list[logging.LogRecord]) -> None:
    seen: list[set[bool]] = []
    arguments: dict[str, Any] = {"amp": True, "imgsz": 64}
    ours = losses(train, see=lambda trainer: seen.append(layouts(trainer)), **arguments)
    assert seen[0] == {False}
    (line,) = said(log, "Training in NCHW")
    assert "because batch norm, max-pool, channels_last (bfloat16) differs from the CPU's by 0.0" in line
    assert ours == losses(train, xpu_channels_last=False, **arguments)
    log.clear()
    assert look(train, "on_train_start", layouts, imgsz=64, amp=False) == {True}


@quirk("wrong_unscale")
@pytest.mark.xpu_profile("core-ultra-155h")
def test_a_run_computes_in_fp32_where_gradients_cant_be_scaled(train: Train, log: list[logging.LogRecord]) -> None:
    assert train(val=False).xpu.precision.name == "fp32"
    assert said(log, "fp32 because gradient scaler (float16) differs from the CPU's by inf")
    assert train(val=False, amp="fp16").xpu.precision.name == "fp16"
    (line,) = said(log, "The model may learn nothing")
    assert "gradient scaler" in line


@quirk("wrong_conv_grad")
def test_images_of_32_pixels_are_learnt_from_as_by_plain_ultralytics(train: Train) -> None:
    arguments: dict[str, Any] = {"task": "classify", "imgsz": 32, "batch": 3, "xpu_fused_optimizer": False}
    ours = losses(train, **arguments)
    del arguments["xpu_fused_optimizer"]
    assert ours == losses(train, plain=True, device="xpu:0", **arguments)


@quirk("wrong_conv_grad")
def test_images_of_32_pixels_are_learnt_from_in_nchw_in_mixed_precision(train: Train) -> None:
    arguments: dict[str, Any] = {"task": "classify", "imgsz": 32, "batch": 3, "amp": True}
    seen: list[tuple[set[bool], str]] = []
    ours = losses(train, see=lambda t: seen.append((layouts(t), t.xpu.precision.name)), **arguments)
    assert seen == [({False}, "bf16")]
    assert ours == losses(train, xpu_channels_last=False, **arguments)


@quirk("wrong_conv_grad")
@pytest.mark.usefixtures("channels_last_by_default")
def test_larger_images_are_trained_in_channels_last_all_the_same(train: Train, log: list[logging.LogRecord]) -> None:
    assert look(train, "on_train_start", layouts, imgsz=64) == {True}
    assert not said(log, "training in NCHW")


def test_pending_results_are_waited_for(train: Train, nothing_known: None) -> None:
    with quirks.ordered("corrupt_empty_cache"):
        spoilt = losses(train)
    assert spoilt == losses(train)


@quirk("slow_channels_last")
@pytest.mark.usefixtures("channels_last_by_default")
def test_a_slower_layout_is_not_taken(train: Train, log: list[logging.LogRecord]) -> None:
    assert look(train, "on_train_start", layouts, imgsz=64) == {False}
    (line,) = said(log, "Training in NCHW")
    assert "× as long (limit 2 ×)" in line
    assert "xpu:0 Intel Arc B580" in line


@quirk("wrong_linear_bf16")
def test_a_run_computes_in_fp32_where_16_bits_are_wrong(train: Train, log: list[logging.LogRecord]) -> None:
    trainer = train(val=False)
    assert trainer.xpu.precision.name == "fp32"
    (line,) = said(log, "fp32 because matrix products (bfloat16) differs from the CPU's by inf")
    assert "limit 0.03" in line


@quirk("wrong_linear_bf16")
def test_a_precision_that_is_asked_for_is_warned_of(train: Train, log: list[logging.LogRecord]) -> None:
    assert train(val=False, amp="bf16").xpu.precision.name == "bf16"
    (line,) = said(log, "The model may learn nothing")
    assert "amp='bf16' asks for it" in line


@quirk("wrong_fused_optimizer")
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_weights_are_updated_as_without_fused_kernels(train: Train, log: list[logging.LogRecord], name: str) -> None:
    ours = losses(train, optimizer=name)
    assert ours == losses(train, optimizer=name, xpu_fused_optimizer=False)
    (line,) = said(log, f"because {name}, fused (float32) differs")
    assert "XPU: Weights are updated by more kernels than one" in line


@quirk("wrong_side_stream_copy")
def test_batches_are_copied_in_their_own_steps(train: Train, log: list[logging.LogRecord]) -> None:
    ours = losses(train, workers=1)
    assert ours == losses(train, workers=1, xpu_prefetch=0)
    assert len(said(log, "Each batch is copied in its own step, because copies in a side stream")) == 1


def test_the_precision_is_chosen_by_what_is_found_anew(train: Train, nothing_known: None) -> None:
    assert train(val=False).xpu.precision.name == "bf16"
    with quirks.ordered("wrong_linear_bf16"):
        assert train(val=False, xpu_self_check="full").xpu.precision.name == "fp32"


@quirk("wrong_topk")
def test_a_training_that_tuning_starts_is_refused_as_well(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_XPU_CHILD", "1")
    with pytest.raises(WrongResultsError):
        train()


# A sound device


def test_a_second_training_compares_nothing(train: Train, log: list[logging.LogRecord], nothing_known: None) -> None:
    train(val=False)
    assert len(said(log, "comparing operators of xpu:0 Intel Arc B580")) == 1
    (line,) = said(log, "operators compared")
    assert "all right" in line
    (known,) = results._known.values()
    assert f"XPU: {len(known)} operators compared" in line  # those by which the precision was chosen among them
    assert sum(name.endswith("bfloat16") for name in known) > 20
    log.clear()
    train(val=False)
    results._known.clear()  # as in another process
    train(val=False)
    assert not said(log, "operators compared")
    train(val=False, xpu_self_check="full")
    assert len(said(log, "operators compared")) == 1


@pytest.mark.parametrize("amp", [True, "fp16"])
def test_full_compares_all_anew_once_each_and_prints_a_table(
    train: Train, log: list[logging.LogRecord], nothing_known: None, monkeypatch: pytest.MonkeyPatch, amp: bool | str
) -> None:
    made: list[str] = []
    make = Check.made_on
    monkeypatch.setattr(Check, "made_on", lambda check, device: made.append(check.key) or make(check, device))
    train(val=False, amp=amp)
    made.clear()
    with quirks.ordered("wrong_grid_sample"):  # which this run doesn't meet
        assert train(val=False, amp=amp, xpu_self_check="full").last.exists()
    every = [check.key for found in manager().hook.xpu_numerics() for check in found]
    assert sorted(made) == sorted(every)
    (line,) = said(log, "1 wrong")
    assert f"XPU: {len(every)} operators compared" in line
    (table,) = said(log, "largest difference")
    assert re.search(r"grid_sample +│ float32 +│ [\d.]+e-01 +│ wrong. Trainings of RT-DETR end", table)
    assert re.search(r"convolution 1×1, channels_last +│ float16 +│ [\d.]+e-\d+ +│ right", table)


def test_only_the_runs_own_precision_is_compared(train: Train, nothing_known: None) -> None:
    train(val=False, amp=False)
    (known,) = results._known.values()
    assert not [name for name in known if name.endswith("float16")]
    assert "grid_sample float32" not in known


def test_a_value_that_is_none_is_refused(train: Train) -> None:
    with pytest.raises(OptionValueError, match="True or False or 'full'"):
        train(xpu_self_check="half")


def test_training_on_the_cpu_compares_nothing(train: Train, log: list[logging.LogRecord], nothing_known: None) -> None:
    train(val=False, device="cpu")
    assert not results.path().exists()
    assert not said(log, "operators compared")


@pytest.fixture
def yolo(data: TrainingData, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that trains by the command on a simulated machine."""

    def run(profile: str, quirks: str = "", **arguments: Any) -> subprocess.CompletedProcess[str]:
        variables = {"XPU_SIMULATOR": profile, "XPU_SIMULATOR_QUIRKS": quirks, "YOLO_VERBOSE": "false"}
        given = {
            "data": data("detect"),
            "model": "yolo11n.yaml",
            "epochs": 1,
            "imgsz": 32,
            "batch": 4,
            "workers": 0,
            "plots": False,
            "val": False,
            "project": str(tmp_path),
            **arguments,
        }
        command = [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()", "train"]
        command += [f"{key}={value}" for key, value in given.items()]
        return subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, check=False, cwd=tmp_path
        )

    return run


def test_the_command_ends_with_one_line_and_a_status_of_its_own(
    yolo: Callable[..., subprocess.CompletedProcess[str]], nothing_known: None
) -> None:
    done = yolo("arc-b580", "wrong_topk")
    assert done.returncode == WrongResultsError.exit_status == 70, done.stderr
    assert "yolo: error: xpu:0 Intel Arc B580 Graphics can't be trained on" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.needs("torch.distributed.is_xccl_available")
def test_workers_of_several_devices_do_as_their_parent_found(
    yolo: Callable[..., subprocess.CompletedProcess[str]], nothing_known: None
) -> None:
    arguments = {"device": "xpu:0,1", "imgsz": 64, "batch": 4, "amp": "False"}
    done = yolo("max-1550", "wrong_fused_optimizer", **arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = yolo("max-1550", "wrong_topk", **{**arguments, "xpu_self_check": "full"})
    assert refused.returncode == 70
    assert "xpu:0 Intel Data Center GPU Max 1550" in refused.stderr
