"""What every test gets: no network, a working directory and Ultralytics settings of its own, tiny data sets."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from .datasets import WRITERS, digits

# Ultralytics and PyTorch read these while they are imported.
_SETTINGS = Path(tempfile.mkdtemp(prefix="ultralytics-"))
atexit.register(shutil.rmtree, _SETTINGS, ignore_errors=True)
os.environ["YOLO_CONFIG_DIR"] = str(_SETTINGS)
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads contend with the data loader's
os.environ.setdefault("TORCH_DISABLE_NATIVE_JIT", "1")  # PyTorch's Triton kernels need a driver

Train = Callable[..., Any]
"""Trains a tiny model and returns its trainer: the fixture of `runs/conftest.py`."""

TrainingData = Callable[[str], str]
"""Returns what Ultralytics takes as `data`, by task."""


@pytest.fixture(scope="session", autouse=True)
def _font() -> None:
    """Give Ultralytics the font that it would download for its plots."""
    import matplotlib

    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    directory = _SETTINGS / "Ultralytics"
    directory.mkdir(exist_ok=True)
    shutil.copy(font, directory / "Arial.ttf")


@pytest.fixture(autouse=True)
def _clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in a directory of the test's own, without this package's variables of the developer's shell."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("YOLO_XPU_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def nothing_known() -> Iterator[None]:
    """Let nothing be known of any device's numbers, before the test and after it."""
    from yolo_xpu_trainer.numerics import results

    def forget() -> None:
        results._known.clear()
        results.path().unlink(missing_ok=True)

    forget()
    yield
    forget()


@pytest.fixture(autouse=True)
def _quirks_are_not_remembered(request: pytest.FixtureRequest) -> None:
    """A quirk changes what is found on a device, not what the device is called."""
    if request.node.get_closest_marker("xpu_quirks"):
        request.getfixturevalue("nothing_known")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """Write each task's data set when it is first asked for."""
    written: dict[str, Path] = {}

    def get(task: str) -> str:
        if task not in written:
            written[task] = WRITERS[task](tmp_path_factory.mktemp(task))
        return str(written[task])

    return get


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write 64 training and 64 validation images of handwritten digits."""
    return str(digits(tmp_path_factory.mktemp("digits"), images=64))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """Collect what Ultralytics and this package report; what is said once a process may be said again."""
    from yolo_xpu_trainer import patches, plugins

    monkeypatch.setattr(patches, "_warned", set())
    monkeypatch.setattr(plugins, "_reported", set())
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("ultralytics")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures undrawn, with an empty file for each: drawing takes ten times as long as a tiny training.

    Everything that leads up to a figure happens, and so do pictures of batches, which no figure holds.
    """
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, file, *args, **kwargs: Path(file).touch())


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """A list of further entry points, which a fresh plugin manager finds before the built-in ones."""
    from yolo_xpu_trainer import plugins

    more: list[EntryPoint] = []

    def found(*, group: str) -> list[EntryPoint]:
        return [*(entry for entry in more if entry.group == group), *entry_points(group=group)]

    monkeypatch.setattr(plugins, "entry_points", found)
    plugins.manager.cache_clear()
    yield more
    plugins.manager.cache_clear()


@pytest.fixture
def channels_last_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let channels_last be the default on each PyTorch, as it is since 2.7."""
    monkeypatch.setattr("yolo_xpu_trainer.policies.channels_last._by_default", lambda: True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs what this release of PyTorch hasn't got."""
    for name in (name for mark in item.iter_markers("needs") for name in mark.args):
        try:
            resolve_name(name)
        except (AttributeError, ImportError):
            import torch

            pytest.skip(f"PyTorch {torch.__version__} has no {name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the simulator's own tests first: they know how much memory of the device is in use, to the byte."""
    items.sort(key=lambda item: "unit/simulator" not in item.nodeid)
