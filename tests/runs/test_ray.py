"""A search with Ray Tune on two simulated XPUs. Skipped where Ray isn't installed: it takes half a gigabyte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from ..conftest import TrainingData

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("ray", "pandas", "pyarrow")),
    reason='Ray Tune is not installed; `pip install "ray[tune]"`, of half a gigabyte, lets this test run',
)


@pytest.mark.slow
def test_ray_search_has_one_trial_on_each_xpu_and_outlives_a_killed_one(data: TrainingData, tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    words = [data("detect"), str(tmp_path / "runs"), str(records)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.runs.ray_search", *words],
        cwd=ROOT,
        env={**os.environ, "XPU_SIMULATOR": "max-1550", "YOLO_AUTOINSTALL": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((records / "report").read_text())
    trials: list[dict[str, Any]] = [json.loads(path.read_text()) for path in records.glob("*.json")]

    # A Ray that was started without GPUs has none for a trial: the search is refused, instead of waiting for one.
    assert "Ray has 0" in report["refused"]
    assert "ray.init(num_gpus=2)" in report["refused"]

    # Four trials, each alone on one of the two XPUs, with this package's trainer.
    assert "XPU: Ray Tune runs 2 trials at a time, each with 1 of 2 XPUs (xpu:0 Intel" in report["said"][0]
    assert report["trained"] == 4
    assert {trial["trainer"] for trial in trials} == {"XPUDetectionTrainer"}
    assert {trial["devices"] for trial in trials} == {1}
    assert {(trial["mask"], trial["gpu"]) for trial in trials} == {("0", 0), ("1", 1)}
    trials.sort(key=lambda trial: (trial["gpu"], trial["began"]))
    for _, on_one in groupby(trials, key=lambda trial: trial["gpu"]):
        one_after_the_other = [moment for trial in on_one for moment in (trial["began"], trial["ended"])]
        assert one_after_the_other == sorted(one_after_the_other)

    # One of them was killed, and the others went on; the resumed search trains that one again.
    assert [error is None for error in report["first"]].count(False) == 1
    assert report["again"] == [None] * 4
    assert len(trials) == 5

    # What the trials computed on is the XPU that they saw.
    weights = [torch.load(path, weights_only=False) for path in (tmp_path / "runs").rglob("weights/last.pt")]
    assert len(weights) == 4
    assert {saved["xpu_trainer"]["device"] for saved in weights} == {"xpu:0"}
    assert {saved["xpu_trainer"]["options"]["self_check"] for saved in weights} == {False}
