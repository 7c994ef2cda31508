"""The worked example of `docs/plugins.md`, installed as its user installs it, does what the page says."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yolo_xpu_trainer import hookspecs, plugins

from ..conftest import TrainingData

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).parents[1] / "example_plugin"
PAGE = ROOT / "docs" / "plugins.md"

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import os
import sys
from pathlib import Path

import torch
from ultralytics import YOLO


def look(trainer):
    first = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.Conv2d))

    def note(layer, inputs):
        if layer.training:
            grey = bool((inputs[0][:, 0] == inputs[0][:, 1]).all())
            Path(f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps([type(trainer).__name__, grey]))

    first.register_forward_pre_hook(note)


if __name__ == "__main__":
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_start", look)
    given = json.loads(sys.argv[2])
    model.train(data=sys.argv[1], epochs=1, imgsz=32, batch=4, workers=0, plots=False, save_dir="run", **given)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip installed the example."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--target", str(target), str(EXAMPLE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def run(arguments: list[str], where: Path, installed: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the example is installed."""
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", "PYTHONPATH": os.pathsep.join([str(installed), *before])}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**environment, "COLUMNS": "200", **variables},
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
    )


def train(where: Path, data: str, installed: Path, given: dict[str, Any], **variables: str) -> tuple[str, Any]:
    """Train an epoch.

    Returns:
        What was printed, and what the checkpoint remembers.
    """
    import torch

    (where / "script.py").write_text(SCRIPT)
    done = run(["script.py", data, json.dumps(given)], where, installed, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    checkpoint = torch.load(where / "run" / "weights" / "last.pt", map_location="cpu", weights_only=False)
    return done.stdout + done.stderr, checkpoint["xpu_trainer"]


def seen(where: Path, rank: int = 0) -> list[Any]:
    return json.loads((where / f"rank{rank}.json").read_text())  # type: ignore[no-any-return]


def table(where: Path, installed: Path, **variables: str) -> dict[str, list[str]]:
    """Return what `yolo-xpu plugins` prints: who is asked, in order, by hook."""
    done = run(["-m", "yolo_xpu_trainer", "plugins"], where, installed, **variables)
    assert done.returncode == 0, done.stderr
    rows: dict[str, str] = {}
    hook = ""
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃|]", line)]
        if len(cells) == 5:  # a cell that is too long goes on in the next line
            hook = cells[1] or hook
            rows[hook] = f"{rows.get(hook, '')} {cells[3]}".strip()
    return {hook: re.split(", | or else ", asked) for hook, asked in rows.items()}


# Used


def test_a_training_names_its_trainer_and_its_policy_decides(
    installed: Path, data: TrainingData, tmp_path: Path
) -> None:
    text, saved = train(tmp_path, data("detect"), installed, {"trainer": "grey"})
    assert seen(tmp_path) == ["GreyTrainer", True]
    assert saved["precision"] == "fp32"
    assert "fp32 because the card has room for it" in text


def test_its_policy_decides_for_any_trainer_and_gives_way_to_the_user(
    installed: Path, data: TrainingData, tmp_path: Path
) -> None:
    _, saved = train(tmp_path, data("detect"), installed, {"amp": "bf16"})
    assert seen(tmp_path) == ["XPUDetectionTrainer", False]
    assert saved["precision"] == "bf16"


def test_its_trainer_trains_on_two_gpus(installed: Path, data: TrainingData, tmp_path: Path) -> None:
    given = {"trainer": "grey", "device": "xpu:0,1"}
    text, saved = train(tmp_path, data("detect"), installed, given, XPU_SIMULATOR="max-1550")
    assert [seen(tmp_path, rank) for rank in range(2)] == [["GreyTrainer", True]] * 2, text
    assert (saved["device"], saved["precision"]) == ("xpu:0,1", "fp32")


def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "example", ignore=shutil.ignore_patterns("xpu_grey", "__pycache__"))
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider"], tmp_path / "example", installed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


# Listed, limited


def test_yolo_xpu_plugins_lists_it_before_the_built_in_one(installed: Path, tmp_path: Path) -> None:
    asked = table(tmp_path, installed)
    assert asked["xpu_precision"] == ["grey", "precision"]
    assert asked["xpu_trainers"] == ["grey", "trainers"]
    assert "grey" not in asked["xpu_memory"]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [("", ["precision"]), ("another, grey", ["grey", "precision"])],
)
def test_a_variable_limits_the_plugins_of_others_and_never_the_built_in_ones(
    allowed: str, expected: list[str], installed: Path, tmp_path: Path
) -> None:
    asked = table(tmp_path, installed, YOLO_XPU_PLUGINS=allowed)
    assert asked["xpu_precision"] == expected
    assert asked["xpu_memory"] == ["memory"]


def test_left_out_it_decides_nothing_and_its_name_is_unknown(
    installed: Path, data: TrainingData, tmp_path: Path
) -> None:
    _, saved = train(tmp_path, data("detect"), installed, {}, YOLO_XPU_PLUGINS="")
    assert saved["precision"] == "bf16"
    done = run(["script.py", data("detect"), '{"trainer": "grey"}'], tmp_path, installed, YOLO_XPU_PLUGINS="")
    assert done.returncode == 1
    assert "UnknownTrainerError: trainer='grey' is not registered for this model" in done.stderr


# Broken


HOOK = "from yolo_xpu_trainer import hookimpl\n\n@hookimpl\ndef "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('it fell apart')", "it fell apart"),
        (f"{HOOK}xpu_no_such_hook(trainer): ...", "xpu_no_such_hook"),
    ],
    ids=["raises", "has an unknown hook"],
)
def test_a_broken_one_is_named_once_and_left_out_and_the_training_goes_on(
    text: str, said: str, installed: Path, data: TrainingData, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(installed, broken)
    (broken / "xpu_grey" / "__init__.py").write_text(text)
    output, saved = train(tmp_path, data("detect"), broken, {"trainer": "xpu"})
    assert saved["precision"] == "bf16"
    warnings = [line for line in output.splitlines() if "grey" in line]
    assert len(warnings) == 1, warnings
    assert "'grey' (xpu_grey) is disabled" in warnings[0]
    assert said in warnings[0]


# The page


def test_the_page_shows_the_example_as_it_is() -> None:
    text = PAGE.read_text()
    shown = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    files = {
        str(path.relative_to(EXAMPLE)): path.read_text()
        for path in EXAMPLE.rglob("*")
        if path.suffix in (".py", ".toml") and path.name != "conftest.py"
    }
    assert shown == files


def test_the_page_has_every_hook_with_its_arguments_and_no_other() -> None:
    manager = plugins.manager()
    text = PAGE.read_text()
    found = re.findall(r"^### `(xpu_\w+)\((.*?)\)`(.*)$", text, re.MULTILINE)
    headings = {name: [a.strip() for a in arguments.split(",")] if arguments else [] for name, arguments, _ in found}
    specified = {name: function for name, function in vars(hookspecs).items() if name.startswith("xpu_")}
    assert headings == {name: list(inspect.signature(function).parameters) for name, function in specified.items()}
    first = {name for name, _, rest in found if "first answer counts" in rest}
    assert first == {name for name in specified if getattr(manager.hook, name).spec.opts["firstresult"]}
    mentioned = set(re.findall(r"`(xpu_[a-z]+(?:_[a-z]+)*)[(`]", text))
    assert mentioned - {"xpu_profile"} >= set(specified)


def test_the_page_names_variables_and_commands_that_there_are() -> None:
    text = PAGE.read_text()
    assert plugins.PLUGINS.variable in text
    assert f"`{hookspecs.PROJECT}`" in text
    assert "yolo-xpu plugins" in text
