"""The genetic tuner on a simulated XPU: a trial that is killed, a search that goes on."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils import checks

from yolo_xpu_trainer.errors import UnknownOptionError

from ..conftest import TrainingData
from ..training import SMALL


@contextmanager
def killing_a_trial(number: int, project: Path) -> Iterator[list[int]]:
    """Kill the process of a search's n-th trial as it trains."""
    killed: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        seen: list[int] = []
        while not ended.is_set():
            for process in psutil.Process().children():
                try:
                    is_new = "train" in process.cmdline() and process.pid not in seen
                except psutil.Error:
                    continue
                if is_new:
                    before = set(project.rglob("args.yaml"))
                    seen.append(process.pid)
                if len(seen) == number and set(project.rglob("args.yaml")) - before:  # its folder: it trains
                    process.kill()
                    killed.append(process.pid)
                    return
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        ended.set()
        watcher.join()


@pytest.mark.slow
@pytest.mark.xpu_profile("max-1550")
def test_tuning_outlives_a_killed_trial_and_goes_on_when_resumed(
    xpu: torch.device, data: TrainingData, empty_figures: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XPU_SIMULATOR", "max-1550")
    project = tmp_path / "runs"

    def search(iterations: int, **more: Any) -> list[bool]:
        """Search, and return of each trial whether it was trained to its end."""
        given = {**SMALL, "data": data("detect"), "project": str(project), "device": "xpu:1", **more}
        YOLO("yolo11n.yaml").tune(iterations=iterations, xpu_self_check=False, **given)
        rows = (project / "tune" / "tune_results.ndjson").read_text().splitlines()
        return ["failed_datasets" not in json.loads(row) for row in rows]

    with killing_a_trial(1, project) as killed:
        assert search(2) == [False, True]
    assert len(killed) == 1
    assert search(3, resume=True) == [False, True, True]
    saved = [torch.load(path, weights_only=False)["xpu_trainer"] for path in project.rglob("last.pt")]
    assert saved
    assert {settings["device"] for settings in saved} == {"xpu:1"}
    assert {settings["options"]["self_check"] for settings in saved} == {False}


def test_a_ray_search_without_ray_is_refused_by_ultralytics_itself(
    xpu: torch.device, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(checks, "check_requirements", lambda *args, **kwargs: False)  # which would install it
    with pytest.raises(ModuleNotFoundError, match="Ray Tune required but not found"):
        YOLO("yolo11n.yaml").tune(use_ray=True, data=data("detect"), trainer="xpu", xpu_self_check=False, **SMALL)


def test_a_ray_search_refuses_an_unknown_option_before_ray_is_looked_for(xpu: torch.device) -> None:
    with pytest.raises(UnknownOptionError, match="xpu_prefetch"):
        YOLO("yolo11n.yaml").tune(use_ray=True, data="coco8.yaml", xpu_prefech=0)
