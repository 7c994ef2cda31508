"""The plan of the package: which module may import which, and what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import yolo_xpu_trainer
from yolo_xpu_trainer import activation, policies, trainers
from yolo_xpu_trainer.plugins import built_in

PACKAGE = Path(yolo_xpu_trainer.__file__).parent

# From the bottom up: a module imports only what stands in front of it, or beside it.
LAYERS = (
    {"errors", "files", "launchers", "versions", "patches", "host_kernels", "own_code", "watchdog", "run_folders"}
    | {"diagnosis", "known_tensors", "remedies", "staging", "telemetry"},
    {"affinity", "options", "devices", "device_errors", "ranks", "process_group", "elastic", "transfer"}
    | {"unused_gpu"},
    {"recovery"},
    {"run"},
    {"numerics", "batches", "stopwatch", "criterion"},
    {"hookspecs"},
    {"plugins"},
    {"upstream"},
    {"seams"},
    {"trainers"},
    {"policies"},
    {"activation"},
    {"commands", "train"},
    {"__init__", "__main__"},
)


def imports(path: Path) -> set[str]:
    """Return the modules of the package that a module imports anywhere, as dotted names within the package."""
    package = path.relative_to(PACKAGE).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level or _for_types_only(node, path):
            continue
        base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        base = [part for part in base if part]
        for alias in node.names:
            name = [*base, alias.name]
            is_module = PACKAGE.joinpath(*name).with_suffix(".py").exists() or PACKAGE.joinpath(*name).is_dir()
            found.add(".".join(name if is_module else base))
    return found - {""}


def _for_types_only(node: ast.AST, path: Path) -> bool:
    """Whether an import stands under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        isinstance(block, ast.If)
        and isinstance(block.test, ast.Name)
        and block.test.id == "TYPE_CHECKING"
        and block.lineno < node.lineno <= (block.body[-1].end_lineno or 0)  # type: ignore[attr-defined]
        for block in ast.walk(tree)
    )


def graph() -> dict[str, set[str]]:
    modules: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        modules[name] = imports(path)
    return modules


def layer(module: str) -> int:
    first = module.partition(".")[0]
    (found,) = (i for i, names in enumerate(LAYERS) if first in names)
    return found


def test_imports_form_no_circle() -> None:
    try:
        assert list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {error.args[1]}")


def test_nothing_is_imported_upwards() -> None:
    upwards = {(a, b) for a, found in graph().items() for b in found if layer(b) > layer(a)}
    assert not upwards


def test_no_policy_imports_another() -> None:
    def policy(module: str) -> str:
        return module.split(".")[1] if module.startswith("policies.") else ""

    others = {a: {b for b in found if policy(b) not in ("", policy(a))} for a, found in graph().items() if policy(a)}
    assert others
    assert not {a: found for a, found in others.items() if found}


def test_the_mixin_imports_no_policy() -> None:
    assert not {module for module in graph()["trainers"] if module.startswith("policies")}


def test_what_ultralytics_import_imports_of_ours_imports_nothing_of_ultralytics() -> None:
    """Policies and patches are imported in the midst of `import ultralytics`, and import it within functions."""
    at_once = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^(from|import) ultralytics", path.read_text("utf-8"), re.MULTILINE)
    }
    assert at_once == {"trainers", "commands"}


def test_the_cache_is_emptied_by_one_function_which_waits_before() -> None:
    callers = {path.name for path in PACKAGE.rglob("*.py") if "torch.xpu.empty_cache" in path.read_text("utf-8")}
    assert callers == {"devices.py"}


def test_process_wide_policies_are_a_fixed_tuple_and_all_there_are() -> None:
    declaring = {name for name in built_in() if "PATCHES" in vars(getattr(policies, name, object))}
    in_process = {module.__name__.rpartition(".")[2] for module in activation._SOURCES if "policies" in module.__name__}
    assert declaring == in_process


# Public names


def test_every_public_name_can_be_imported_and_has_a_docstring() -> None:
    for name in yolo_xpu_trainer.__all__:
        value = getattr(yolo_xpu_trainer, name)
        assert name == "__version__" or value.__doc__
    assert set(dir(yolo_xpu_trainer)) == set(yolo_xpu_trainer.__all__)


def test_every_trainer_is_public() -> None:
    public = {name for name in yolo_xpu_trainer.__all__ if name.endswith("Trainer")}
    assert public == {*trainers.TRAINERS, "XPUTrainer"}


def test_a_type_checker_knows_every_public_name_and_no_other(tmp_path: Path) -> None:
    names = [name for name in yolo_xpu_trainer.__all__ if name != "__version__"]
    right = tmp_path / "right.py"
    right.write_text(f"from yolo_xpu_trainer import {', '.join(names)}\nreveal_type(XPUDetectionTrainer)\n")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from yolo_xpu_trainer import XPUDetectionTriner\n")

    def mypy(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", str(path)]
        settings = ["--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
        return subprocess.run([*command, *settings], capture_output=True, text=True, cwd=tmp_path, check=False)

    known, unknown = mypy(right), mypy(wrong)
    assert known.returncode == 0, known.stdout + known.stderr
    assert "yolo_xpu_trainer.trainers.XPUDetectionTrainer" in known.stdout
    assert unknown.returncode == 1
    assert 'Module "yolo_xpu_trainer" has no attribute "XPUDetectionTriner"' in unknown.stdout
