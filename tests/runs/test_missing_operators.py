"""Operators without an XPU kernel: a training goes on with the host's, and says which."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import xpu_simulator
from yolo_xpu_trainer.host_kernels import computed_on_the_host, missing

from ..conftest import TrainingData

LACKS = [
    "aten::upsample_nearest2d", "aten::upsample_nearest2d.out",
    "aten::upsample_nearest2d_backward", "aten::upsample_nearest2d_backward.grad_input",
    "aten::topk", "aten::topk.values",
]  # fmt: skip

TRAINING = """
import json, sys
from ultralytics import YOLO
seen = []
model = YOLO("yolo11n.yaml")
model.add_callback("on_train_batch_end", lambda trainer: seen.append(trainer.loss.item()))
more = json.loads(sys.argv[3])
small = dict(epochs=1, imgsz=64, batch=4, workers=0, plots=False, amp=False)
model.train(project=".", data=sys.argv[1], device=sys.argv[2], **small, **more)
print("LOSSES", json.dumps(seen))
"""


def trained(data: str, device: str, folder: Path, lacks: list[str], **more: Any) -> tuple[list[float], str]:
    """Train in a process whose PyTorch lacks some kernels; return the losses, and all that it said."""
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", "XPU_SIMULATOR_MISSING": ",".join(lacks)}
    command = [sys.executable, "-c", TRAINING, data, device, json.dumps(more)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    losses = [line for line in done.stdout.splitlines() if line.startswith("LOSSES")]
    return (json.loads(losses[0].removeprefix("LOSSES")) if losses else []), said


@pytest.mark.slow
def test_it_is_computed_on_the_host_and_named_once(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    exact = {"xpu_channels_last": False, "xpu_fused_optimizer": False}
    expected, _ = trained(data("detect"), "xpu:0", tmp_path, [], **exact)
    losses, said = trained(data("detect"), "xpu:0", tmp_path, LACKS, **exact)
    assert losses == expected != []
    assert "is switched off" not in said
    for name in ("aten::upsample_nearest2d.out", "aten::upsample_nearest2d_backward.grad_input", "aten::topk.values"):
        assert said.count(f"has no XPU kernel of {name},") == 1, said


def test_without_the_policy_pytorch_refuses(xpu: torch.device, data: TrainingData, tmp_path: Path) -> None:
    losses, said = trained(
        data("detect"), "xpu:0", tmp_path, LACKS, xpu_plugins="-missing_operators", xpu_self_check=False
    )
    assert losses == []
    assert "is not currently implemented for the XPU device" in said


def test_nothing_is_registered_where_nothing_lacks(xpu: torch.device) -> None:
    assert missing() == ()


def test_what_an_operator_writes_is_written_and_what_it_returns_is_on_the_device(xpu: torch.device) -> None:
    values = torch.tensor([1.5, -2.5, 0.5], device=xpu)
    order, sorted_values = torch.empty(0, dtype=torch.int64, device=xpu), torch.empty(0, device=xpu)
    with computed_on_the_host(["aten::floor_", "aten::sort.values_stable", "aten::roll"]):
        assert values.floor_() is values
        torch.sort(values, stable=True, out=(sorted_values, order))
        rolled = torch.roll(values, 1)
    assert values.tolist() == [1.0, -3.0, 0.0]
    assert sorted_values.tolist() == [-3.0, 0.0, 1.0]
    assert order.tolist() == [1, 2, 0]
    assert rolled.device == xpu
    assert rolled.tolist() == [0.0, 1.0, -3.0]
    with xpu_simulator.count() as counts:
        values.floor_()
    assert not counts.syncs  # the device's own kernel is back
