"""What the pages tell their readers to type, tried: with a tiny data set, an untrained model, and one epoch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics

from ..conftest import TrainingData
from ..unit.test_docs import DOCS, README, blocks, named

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DOCS.exists(), reason="the pages are in the repository, which isn't here"),
]

TINY = {"epochs": 1, "imgsz": 32, "workers": 0, "plots": False}
PYTHON = {code: path for path in (README, *sorted(DOCS.glob("*.md"))) for code in blocks(path, "python")}


@pytest.mark.parametrize(
    ("path", "code"),
    [(path, code) for code, path in PYTHON.items() if ".train(" in code and "def " not in code],
    ids=lambda given: named(given) if isinstance(given, Path) else "",
)
def test_python_of_a_page_trains_on_the_xpu(
    path: Path, code: str, xpu: torch.device, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[torch.device] = []

    class Untrained(ultralytics.YOLO):
        def __init__(self, model: str, *args: Any) -> None:
            super().__init__(model.replace(".pt", ".yaml"), *args)

        def train(self, **arguments: Any) -> Any:
            super().train(**{**arguments, **TINY, "data": data("detect"), "project": str(tmp_path)})
            trained.append(self.trainer.device)

    monkeypatch.setattr(ultralytics, "YOLO", Untrained)
    exec(compile(code, named(path), "exec"), {"__name__": "__main__"})
    assert trained == [xpu]


def test_the_first_run_goes_from_its_first_command_to_its_last(data: TrainingData, tmp_path: Path) -> None:
    image = next(Path(data("detect")).parent.rglob("*.png"))
    tiny = {"data=coco8.yaml": f"data={data('detect')}", "yolo11n.pt": "yolo11n.yaml", "image.jpg": str(image)}
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "XPU_SIMULATOR": "arc-b580",
        "YOLO_CONFIG_DIR": str(tmp_path / "settings"),
        "YOLO_VERBOSE": "true",
    }
    printed = []
    for line in "".join(blocks(DOCS / "first-run.md", "console")).splitlines():
        mode = re.match(r"\$ yolo (\w+)", line)
        if not mode:
            continue
        for name, instead in tiny.items():
            line = line.replace(name, instead)
        more = [f"{k}={v}" for k, v in TINY.items()] if mode[1] == "train" else ["imgsz=32", "plots=False"]
        more.append(f"project={tmp_path / 'runs' / 'detect'}")  # by default beside the sources of an environment in git
        command = [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()"]
        command += [*line.split()[2:], *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        printed.append((mode[1], re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)))
    assert [mode for mode, _ in printed] == ["train", "val", "predict"]
    assert "XPU: xpu:0 Intel Arc B580 Graphics" in printed[0][1]
    assert (tmp_path / "runs" / "detect" / "train" / "weights" / "best.pt").exists()
