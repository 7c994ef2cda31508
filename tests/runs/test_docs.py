"""What the pages tell their readers to type, tried: with a tiny data set, an untrained model, and one epoch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics

from yolo_xpu_trainer.commands import main

from ..conftest import TrainingData
from ..documented import commands_of
from ..unit.test_docs import DOCS, README, blocks, named

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the pages are in the repository, which isn't here")

TINY = {"epochs": 1, "imgsz": 32, "workers": 0, "plots": False}
PYTHON = {code: path for path in (README, *sorted(DOCS.glob("*.md"))) for code in blocks(path, "python")}


def printed(text: str) -> str:
    """Return what was printed without the terminal's colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Give a process of a reader's: a simulated GPU, and settings of its own."""
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "XPU_SIMULATOR": "arc-b580",
        "YOLO_CONFIG_DIR": str(tmp_path / "settings"),
        "YOLO_VERBOSE": "true",
    }


@pytest.fixture
def trained(data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let models be tiny and untrained; collect the trainers of their trainings."""
    trainers: list[Any] = []

    class Untrained(ultralytics.YOLO):
        def __init__(self, model: str, *args: Any, **more: Any) -> None:
            super().__init__(re.sub(r"yolo11.\.pt", "yolo11n.yaml", model), *args, **more)

        def train(self, **arguments: Any) -> Any:
            arguments.pop("model", None)  # the `yolo` command gives it twice
            super().train(**{**arguments, **TINY, "data": data("detect"), "project": str(tmp_path)})
            trainers.append(self.trainer)

    monkeypatch.setattr(ultralytics, "YOLO", Untrained)
    return trainers


PRINTS = {
    "yolo-xpu --version": r"yolo-xpu-trainer \d",
    "yolo-xpu autotune --forget": r"Arc B580.*: 0 choices forgotten",
    "yolo-xpu bench --help": "--switches",
    "yolo-xpu init": "pip install",
    "yolo-xpu init --constraints constraints.txt": "constraints.txt",
    "yolo-xpu options": "xpu_channels_last",
    "yolo-xpu options --markdown": r"\| `xpu_channels_last` \|",
    "yolo-xpu plugins": "xpu_precision",
    "yolo settings": "runs_dir",
}


@pytest.mark.parametrize("command", commands_of("test_a_command_that_prints_something_prints_it"))
def test_a_command_that_prints_something_prints_it(
    command: str, xpu: torch.device, log: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    program, *words = command.split()
    if program == "yolo":
        ultralytics.cfg.entrypoint(command)
    elif "--help" in words or "--version" in words:
        with pytest.raises(SystemExit, match=r"^0?$"):
            main(words)
    else:
        main(words)  # `init` ends with 1 where no Intel GPU is on the bus
    out, err = capsys.readouterr()
    assert re.search(PRINTS[command], printed(out + err + "".join(record.getMessage() for record in log)))
    if "constraints.txt" in words:
        assert Path("constraints.txt").read_text(encoding="utf-8").count("+xpu\n") == 2


@pytest.mark.parametrize("command", commands_of("test_pytorch_is_asked_for_its_build"))
def test_pytorch_is_asked_for_its_build(command: str, xpu: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    *_, code = shlex.split(command)
    exec(code, {})
    told = " True" if "is_available" in command else ""
    assert capsys.readouterr().out == f"{torch.__version__}{told}\n"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="it is what a shell is told")
def test_a_virtual_environment_is_made_and_entered(environment: dict[str, str], tmp_path: Path) -> None:
    commands = [*commands_of("test_a_virtual_environment_is_made_and_entered"), "pip --version"]
    done = subprocess.run(
        ["bash", "-c", " && ".join(commands)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"from {tmp_path / '.venv'}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", commands_of("test_a_training_of_a_page_trains_on_the_xpu"))
def test_a_training_of_a_page_trains_on_the_xpu(command: str, xpu: torch.device, trained: list[Any]) -> None:
    ultralytics.cfg.entrypoint(command)
    (trainer,) = trained
    assert trainer.device == xpu
    assert trainer.best.exists()
    assert trainer.batch_size > 0
    assert trainer.xpu.options.as_dict()["exact_resume"] is ("xpu_exact_resume=True" in command)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands_of("test_a_supervised_training_of_a_page_ends_well"))
def test_a_supervised_training_of_a_page_ends_well(
    command: str, data: TrainingData, environment: dict[str, str], tmp_path: Path
) -> None:
    words = re.sub(r"yolo11.\.pt", "yolo11n.yaml", command).replace("coco8.yaml", data("detect")).split()[1:]
    tiny = [f"{key}={value}" for key, value in {**TINY, "project": tmp_path}.items()]
    done = subprocess.run(
        [sys.executable, "-m", "yolo_xpu_trainer", *words, *tiny],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "XPU: xpu:0 Intel Arc B580 Graphics" in printed(done.stdout + done.stderr)
    assert (tmp_path / "train" / "weights" / "best.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "code"),
    [(path, code) for code, path in PYTHON.items() if ".train(" in code and "def " not in code],
    ids=lambda given: named(given) if isinstance(given, Path) else "",
)
def test_python_of_a_page_trains_on_the_xpu(path: Path, code: str, xpu: torch.device, trained: list[Any]) -> None:
    exec(compile(code, named(path), "exec"), {"__name__": "__main__"})
    assert [trainer.device for trainer in trained] == [xpu]


@pytest.mark.slow
def test_the_first_run_goes_from_its_first_command_to_its_last(
    data: TrainingData, environment: dict[str, str], tmp_path: Path
) -> None:
    image = next(Path(data("detect")).parent.rglob("*.png"))
    tiny = {"data=coco8.yaml": f"data={data('detect')}", "yolo11n.pt": "yolo11n.yaml", "image.jpg": str(image)}
    said = []
    run = []
    for line in "".join(blocks(DOCS / "first-run.md", "console")).splitlines():
        mode = re.match(r"\$ yolo (\w+)", line)
        if not mode:
            continue
        run.append(line.removeprefix("$ "))
        for name, instead in tiny.items():
            line = line.replace(name, instead)
        more = [f"{k}={v}" for k, v in TINY.items()] if mode[1] == "train" else ["imgsz=32", "plots=False"]
        more.append(f"project={tmp_path / 'runs' / 'detect'}")  # by default beside the sources of an environment in git
        command = [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()"]
        command += [*line.split()[2:], *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(printed(done.stdout + done.stderr))
    assert {*run} == {*commands_of("test_the_first_run_goes_from_its_first_command_to_its_last")}
    assert "XPU: xpu:0 Intel Arc B580 Graphics" in said[0]
    assert (tmp_path / "runs" / "detect" / "train" / "weights" / "best.pt").exists()
