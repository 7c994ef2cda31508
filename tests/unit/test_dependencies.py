"""What the package imports is what it asks an installer for, so that it works in an environment with nothing else."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"yolo_xpu_trainer", "_yolo_xpu_trainer_autoload"}
CALLED = {"cv2": "opencv-python", "sklearn": "scikit-learn"}  # what an index calls it, where that is another name

OF_ULTRALYTICS = {"cv2", "matplotlib", "numpy", "torchvision"}
"""Left to Ultralytics, which can't be imported without them, and knows which versions of them it works with."""

OPTIONAL = {
    "sklearn": "the extra `demo`, whose absence `yolo-xpu demo` explains",
    "triton": "a part of PyTorch's builds for GPUs; whether it is there is what `compile` and doctor ask",
}
"""Imported where they are used alone, so that nothing else fails without them."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    settings = ROOT / "pyproject.toml"
    if not settings.exists():
        pytest.skip("the dependencies are in the repository's pyproject.toml, which isn't here")
    project: dict[str, Any] = pytest.importorskip("tomllib").loads(settings.read_text(encoding="utf-8"))["project"]
    return project


def named(requirements: list[str]) -> set[str]:
    """Return the packages that requirements name, without those of extras."""
    return {re.split(r"[^\w.-]", text)[0].lower() for text in requirements if "extra ==" not in text}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each package that a module imports, and whether that is done as the module itself is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules = [node.module]
        for module in modules:
            yield module.partition(".")[0], id(node) not in late


@pytest.fixture(scope="module")
def imported() -> dict[str, set[tuple[str, bool]]]:
    """Give the packages of others that the sources import: where, and whether at a module's import."""
    found: dict[str, set[tuple[str, bool]]] = defaultdict(set)
    for path in (ROOT / "src").rglob("*.py"):
        for name, early in imports(path):
            if name not in sys.stdlib_module_names and name not in OURS:
                found[name].add((str(path.relative_to(ROOT)), early))
    return found


def test_every_import_is_of_a_declared_dependency(project: dict[str, Any], imported: dict[str, Any]) -> None:
    asked_for = {name.replace("-", "_") for name in named(project["dependencies"])}
    unknown = {
        name: places for name, places in imported.items() if name not in {*asked_for, *OF_ULTRALYTICS, *OPTIONAL}
    }
    assert unknown == {}, "declare it in pyproject.toml, or say above what brings it"


def test_every_declared_dependency_is_imported(project: dict[str, Any], imported: dict[str, Any]) -> None:
    assert {name.replace("-", "_") for name in named(project["dependencies"])} <= {*imported}


def test_ultralytics_brings_what_is_left_to_it(imported: dict[str, Any]) -> None:
    assert {CALLED.get(name, name) for name in OF_ULTRALYTICS} <= named(requires("ultralytics") or [])
    assert {*imported} >= OF_ULTRALYTICS


def test_what_is_optional_is_imported_in_functions_alone(project: dict[str, Any], imported: dict[str, Any]) -> None:
    assert {*imported} >= {*OPTIONAL}
    assert [place for name in OPTIONAL for place, early in imported[name] if early] == []
    assert CALLED["sklearn"] in named(project["optional-dependencies"]["demo"])
