"""Nothing to import: PyTorch loads this package, which acts when Ultralytics is imported, and is felt nowhere else.

Every test looks at fresh processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from ..conftest import TrainingData

ROOT = Path(__file__).parents[2]
PROFILE = "arc-b580"

# Stops before a model is built, and says which trainer was chosen.
CHOSEN = """
class Stop(Exception):
    pass

chosen = []

def stop(trainer):
    chosen.append(trainer)
    raise Stop

model = YOLO("yolo11n.yaml")
model.add_callback("on_pretrain_routine_start", stop)
try:
    model.train(data=DATA, epochs=1, imgsz=32, workers=0, plots=False, save_dir="stopped")
except Stop:
    pass
(trainer,) = chosen
print("chosen:", type(trainer).__module__, type(trainer).__name__, trainer.device)
"""
OURS = "chosen: yolo_xpu_trainer.trainers XPUDetectionTrainer xpu:0"

# Everything in Ultralytics whose code is ours.
REPLACED = """
def replaced():
    found = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "ultralytics":
            continue
        for owner in [module, *(v for v in vars(module).values() if isinstance(v, type))]:
            for key, value in list(vars(owner).items()):
                if getattr(value, "__globals__", {}).get("__name__", "").startswith("yolo_xpu_trainer"):
                    found.append(f"{getattr(owner, '__name__', owner)}.{key}")
    return sorted(set(found))
"""


def python(code: str, folder: Path, *paths: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run some code in a fresh process, with folders in front of its path."""
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), *before]), **variables}
    script = folder / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def said(code: str, folder: Path, *paths: Path, **variables: str) -> str:
    """Return what some code prints in a fresh process, and that process's complaints after it."""
    done = python(code, folder, *paths, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def package(folder: Path, name: str, module: str, text: str | None, group: str, target: str) -> Path:
    """Write somebody's package as pip would have installed it, with an entry point; with no text, without its module.

    Returns:
        The folder for `PYTHONPATH`.
    """
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    if text is not None:
        (folder / f"{module}.py").write_text(text)
    return folder


# Acting


SCRIPT = """
from multiprocessing import freeze_support
import json

import torch
from ultralytics import YOLO

if __name__ == "__main__":
    freeze_support()
    model = YOLO("yolo11n.yaml").to(torch.device("xpu:0"))
    model.train(data={data!r}, epochs=1, imgsz=32, batch=4, workers=2, plots=False, save_dir="run")
    weights = torch.load("run/weights/last.pt", map_location="cpu", weights_only=False)
    print("seen:", json.dumps([type(model.trainer).__name__, str(model.trainer.device), weights["xpu_trainer"]]))
"""


def test_a_script_that_names_nothing_of_ours_trains_with_our_trainer(data: TrainingData, tmp_path: Path) -> None:
    text = said(SCRIPT.format(data=data("detect")), tmp_path, XPU_SIMULATOR=PROFILE)
    (line,) = [line for line in text.splitlines() if line.startswith("seen: ")]
    name, device, saved = json.loads(line.removeprefix("seen: "))
    assert (name, device) == ("XPUDetectionTrainer", "xpu:0")
    assert saved["precision"] == "bf16"


@pytest.mark.parametrize(
    "imports",
    [
        "import torch\nfrom ultralytics import YOLO",
        "from ultralytics import YOLO\nimport torch",
        "import ultralytics.nn.tasks\nfrom ultralytics import YOLO",
        "import ultralytics\nYOLO = ultralytics.YOLO\nYOLO('yolo11n.yaml').info()\nimport yolo_xpu_trainer",
        "import yolo_xpu_trainer\nfrom ultralytics import YOLO",
    ],
    ids=["torch first", "Ultralytics first", "a part of Ultralytics first", "ours last", "ours first"],
)
def test_the_order_of_imports_does_not_matter(imports: str, data: TrainingData, tmp_path: Path) -> None:
    text = said(f"DATA = {data('detect')!r}\n{imports}\n{CHOSEN}", tmp_path, XPU_SIMULATOR=PROFILE)
    assert OURS in text


def test_it_acts_whatever_imports_ultralytics_in_a_thread(data: TrainingData, tmp_path: Path) -> None:
    code = (
        "import importlib, threading\n"
        "import torch\n"
        "threads = [threading.Thread(target=importlib.import_module, args=['ultralytics.engine.model'])\n"
        "           for _ in range(4)]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join()\n"
        f"DATA = {data('detect')!r}\nfrom ultralytics import YOLO\n{CHOSEN}"
    )
    assert OURS in said(code, tmp_path, XPU_SIMULATOR=PROFILE)


# Switched off


SWITCHES = [{"YOLO_XPU_AUTOLOAD": "0"}, {"YOLO_XPU_AUTOLOAD": "off"}, {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}]


@pytest.mark.parametrize("variables", SWITCHES, ids=lambda v: "=".join(*v.items()))
def test_switched_off_it_replaces_nothing_until_it_is_imported(
    variables: dict[str, str], data: TrainingData, tmp_path: Path
) -> None:
    code = f"""
import sys
import torch
import xpu_simulator

xpu_simulator.activate({PROFILE!r})  # TORCH_DEVICE_BACKEND_AUTOLOAD=0 leaves it out too
from ultralytics import YOLO
import ultralytics.engine.trainer
{REPLACED}
assert replaced() == [], replaced()
assert "yolo_xpu_trainer" not in sys.modules
DATA = {data("detect")!r}
{CHOSEN}
import yolo_xpu_trainer
print("replaced:", replaced())
{CHOSEN}
"""
    lines = said(code, tmp_path, XPU_SIMULATOR=PROFILE, **variables).splitlines()
    before, after = [line for line in lines if line.startswith("chosen: ")]
    assert before == "chosen: ultralytics.models.yolo.detect.train DetectionTrainer cpu"
    assert after == OURS
    (replaced,) = [line for line in lines if line.startswith("replaced: ")]
    assert "Model.train" in replaced
    assert "ultralytics.utils.torch_utils.select_device" in replaced


@pytest.mark.parametrize("value", ["", "1", "on", "nonsense"])
def test_only_a_word_that_means_off_switches_it_off(value: str, tmp_path: Path) -> None:
    code = (
        "import sys, _yolo_xpu_trainer_autoload\n"
        "_yolo_xpu_trainer_autoload.load()\n"
        "print([type(finder).__name__ for finder in sys.meta_path])\n"
    )
    assert "_UltralyticsIsWanted" in said(code, tmp_path, YOLO_XPU_AUTOLOAD=value)


# Felt nowhere else


def test_importing_torch_imports_nothing_of_ours_and_touches_no_device(tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        "unwanted = {'yolo_xpu_trainer', 'wrapt', 'pluggy', 'rich', 'ultralytics', 'numpy.testing'}\n"
        "print('imported:', sorted(unwanted & set(sys.modules)), torch.xpu._initialized)\n"
        "assert '_yolo_xpu_trainer_autoload' in sys.modules\n"
    )
    assert "imported: [] False" in said(code, tmp_path, XPU_SIMULATOR=PROFILE)


def test_importing_ultralytics_touches_no_device(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom ultralytics import YOLO\nYOLO('yolo11n.yaml')\n"
        "assert 'yolo_xpu_trainer.activation' in sys.modules\n"
        "print('initialized:', torch.xpu._initialized)\n"
    )
    assert "initialized: False" in said(code, tmp_path, XPU_SIMULATOR=PROFILE)


def test_importing_our_package_imports_neither_torch_nor_ultralytics(tmp_path: Path) -> None:
    code = "import sys, yolo_xpu_trainer\nprint('imported:', sorted({'torch', 'ultralytics'} & set(sys.modules)))"
    assert "imported: []" in said(code, tmp_path)


def test_the_finder_waits_once_and_is_gone_when_ultralytics_was_looked_for(tmp_path: Path) -> None:
    code = (
        "import sys, torch, yolo_xpu_trainer\n"
        "def waiting():\n"
        "    return [type(f).__name__ for f in sys.meta_path].count('_UltralyticsIsWanted')\n"
        "before = waiting()\n"
        "import ultralytics\n"
        "print('waiting:', before, waiting())\n"
    )
    assert "waiting: 1 0" in said(code, tmp_path, XPU_SIMULATOR=PROFILE)


def test_where_ultralytics_is_looked_for_no_other_finder_is_passed_over(tmp_path: Path) -> None:
    """Editable installs, debuggers and import hooks have finders of their own, which may know more than Python's."""
    code = (
        "import sys, torch\n"
        "class Asked:\n"
        "    def __init__(self):\n"
        "        self.names = []\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        self.names.append(name)\n"
        "others = [Asked() for _ in range(3)]\n"
        "place = 1 + [type(f).__name__ for f in sys.meta_path].index('_UltralyticsIsWanted')\n"
        "sys.meta_path[place:place] = others\n"
        "import ultralytics\n"
        "print('asked:', [other.names.count('ultralytics') for other in others])\n"
    )
    assert "asked: [1, 1, 1]" in said(code, tmp_path)


def test_where_ultralytics_is_not_installed_its_absence_is_reported_as_ever(tmp_path: Path) -> None:
    code = (
        "import importlib.machinery, sys, torch\n"
        "class Hidden(importlib.machinery.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name == 'ultralytics' else super().find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Hidden\n"
        "try:\n"
        "    import ultralytics\n"
        "except ModuleNotFoundError as error:\n"
        "    print('missing:', error)\n"
    )
    assert said(code, tmp_path).splitlines() == ["missing: No module named 'ultralytics'"]


# Broken


BOTH = "import torch, ultralytics\nfrom ultralytics import YOLO\nYOLO('yolo11n.yaml')\nprint('fine')\n"


@pytest.mark.parametrize(
    ("first", "text"),
    [("torch", "raise RuntimeError('it fell apart')"), ("ultralytics", "import no_such_module"), ("torch", "def no(:")],
)
def test_if_our_package_can_not_be_imported_torch_and_ultralytics_can(first: str, text: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "yolo_xpu_trainer.py").write_text(text)
    done = python(f"import {first}\n{BOTH}", tmp_path, broken, XPU_SIMULATOR=PROFILE)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    warnings = [line for line in done.stderr.splitlines() if "Warning" in line and "yolo-xpu-trainer" in line]
    assert len(warnings) == 1, done.stderr
    assert "is disabled" in warnings[0]


def test_a_plugin_that_can_not_be_imported_stops_neither_imports_nor_a_training(
    data: TrainingData, tmp_path: Path
) -> None:
    target = "a_strangers_plugin"
    broken = package(
        tmp_path / "broken", target, target, "raise RuntimeError('it fell apart')", "yolo_xpu_trainer", target
    )
    text = said(SCRIPT.format(data=data("detect")), tmp_path, broken, XPU_SIMULATOR=PROFILE)
    assert 'seen: ["XPUDetectionTrainer", "xpu:0"' in text
    warnings = [line for line in text.splitlines() if target in line]
    assert len(warnings) == 1, warnings
    assert "it fell apart" in warnings[0]


# Installed, half uninstalled, uninstalled


NAME = "yolo-xpu-trainer"
MODULES = ("_yolo_xpu_trainer_autoload", "yolo_xpu_trainer")


def test_half_uninstalled_torch_itself_says_how_to_get_around_it(tmp_path: Path) -> None:
    """Metadata that outlives its module: nothing of ours runs, so this is PyTorch's to report."""
    code = f"import sys\nfor name in {MODULES!r}: sys.modules[name] = None\nimport torch\nprint('fine')\n"
    done = python(code, tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: Failed to load the backend extension: yolo_xpu_trainer")
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in last
    assert said(code, tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0") == "fine\n"


def test_the_entry_points_are_where_pytorch_and_the_plugin_manager_look(tmp_path: Path) -> None:
    entries = distribution(NAME).entry_points
    assert [(e.name, e.value) for e in entries if e.group == "torch.backends"] == [
        ("yolo_xpu_trainer", "_yolo_xpu_trainer_autoload:load")
    ]
    assert not [e.name for e in entries if e.group == "yolo_xpu_trainer"]  # built-ins need no metadata
    assert [e.name for e in entries if e.group == "console_scripts"] == ["yolo-xpu"]


# The cost


def test_what_torch_waits_for_is_under_two_milliseconds(record_property: Any, tmp_path: Path) -> None:
    """As torch does it: find the module, import it, call its function; the median of twenty processes."""
    code = (
        "import time\n"
        "start = time.perf_counter()\n"
        "import _yolo_xpu_trainer_autoload\n"
        "_yolo_xpu_trainer_autoload.load()\n"
        "print(time.perf_counter() - start)\n"
    )
    milliseconds = statistics.median(1000 * float(said(code, tmp_path)) for _ in range(20))
    record_property("entry point, ms", round(milliseconds, 3))
    assert milliseconds < 2


def test_what_ultralytics_waits_for_is_a_fraction_of_its_own_import(record_property: Any, tmp_path: Path) -> None:
    """Importing our modules, and the rows whose modules are there by then."""
    code = (
        "import time, torch, _yolo_xpu_trainer_autoload as ours\n"
        "spent = 0\n"
        "def timed(call):\n"
        "    def run(*args):\n"
        "        global spent\n"
        "        start = time.perf_counter()\n"
        "        try:\n"
        "            return call(*args)\n"
        "        finally:\n"
        "            spent += time.perf_counter() - start\n"
        "    return run\n"
        "ours._activate = timed(ours._activate)\n"
        "start = time.perf_counter()\n"
        "from ultralytics import YOLO\n"
        "print('spent:', spent, time.perf_counter() - start)\n"
    )
    (line,) = [line for line in said(code, tmp_path).splitlines() if line.startswith("spent: ")]
    spent, whole = (float(word) for word in line.split()[1:])
    record_property("of importing Ultralytics, s", (round(spent, 3), round(whole, 3)))
    assert spent < max(0.5, whole / 2)
