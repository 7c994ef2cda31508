"""Plugins of somebody else take part in a run; broken ones cost no run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import devices, hookimpl, plugins
from yolo_xpu_trainer.devices import DeviceInfo
from yolo_xpu_trainer.patches import Patch
from yolo_xpu_trainer.run import Precision

from ..conftest import Train
from ..other_plugins import GOOD, module, registered

# Others


class Fixed:
    """Decides the precision of every run."""

    def __init__(self, answer: Precision | None) -> None:
        self.answer = answer
        self.asked: list[tuple[DeviceInfo, bool | str]] = []

    @hookimpl
    def xpu_precision(self, device: DeviceInfo, requested: bool | str) -> Precision | None:
        self.asked.append((device, requested))
        return self.answer


def test_another_plugins_precision_counts_before_the_built_in_one(train: Train) -> None:
    plugin = Fixed(Precision("fp16", "a plugin says so", requested=True))
    with registered(plugin):
        trainer = train()
    assert trainer.xpu.precision == plugin.answer
    assert trainer.scaler.is_enabled()
    assert plugin.asked == [(devices.info(0), True)]
    assert train().xpu.precision.name == "bf16"


class Seams:
    """Has a hand in every seam of a run."""

    def __init__(self) -> None:
        self.called: list[str] = []

    @hookimpl
    def xpu_wrap_dataloader(self, trainer: Any, loader: Any, mode: str) -> None:
        self.called.append(f"loader {mode}")

    @hookimpl
    def xpu_move_batch(self, batch: dict[str, Any]) -> None:
        self.called.append("batch")

    @hookimpl
    def xpu_memory(self, device: DeviceInfo) -> tuple[int, int]:
        self.called.append("memory")
        return 3 << 30, 4 << 30

    @hookimpl
    def xpu_after_setup(self, trainer: Any) -> None:
        assert trainer.optimizer is not None
        self.called.append("after setup")

    @hookimpl
    @contextmanager
    def xpu_around_save(self, trainer: Any) -> Iterator[None]:
        self.called.append("save")
        yield
        assert trainer.last.exists()
        self.called.append("saved")

    @hookimpl
    def xpu_patches(self, trainer: Any) -> list[Patch]:
        return [
            Patch(
                target="ultralytics.utils.torch_utils:one_cycle",
                why="of this test",
                needed=lambda original: self.called.append("patch") or False,  # type: ignore[func-returns-value]
                replacement=lambda run, original: original,
            )
        ]


def test_a_plugin_is_called_at_every_seam_and_the_built_in_policies_still_act(train: Train) -> None:
    plugin = Seams()
    with registered(plugin):
        trainer = train(batch=4, val=False)
        assert trainer._get_memory() == 3.0
        assert trainer._get_memory(fraction=True) == 0.75
    order = list(dict.fromkeys(plugin.called))
    assert order == ["patch", "loader train", "loader val", "after setup", "batch", "memory", "save", "saved"]
    assert plugin.called.count("batch") == 2
    assert torch.load(trainer.last, map_location="cpu", weights_only=False)["xpu_trainer"]["precision"] == "bf16"
    assert trainer._get_memory() < 3.0


def test_a_run_on_the_cpu_asks_no_plugin(train: Train) -> None:
    plugin = Seams()
    with registered(plugin):
        train(device="cpu")
    assert plugin.called == []


MARKED = "from yolo_xpu_trainer import hookimpl\n@hookimpl\n"


def test_a_plugin_of_another_package_is_found_by_its_entry_point_and_asked_first(
    train: Train, others: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others.append(module(tmp_path, "a_good_plugin", GOOD, monkeypatch))
    trainer = train()
    assert trainer.xpu.precision.reason == "theirs"
    assert trainer.amp is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('it fell apart')", "it fell apart"),
        ("import a_module_that_is_not_installed", "a_module_that_is_not_installed"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        (f"{MARKED}def xpu_precision(no_such_argument): ...", "no_such_argument"),
        (f"{MARKED}def xpu_no_such_hook(): ...", "xpu_no_such_hook"),
    ],
    ids=["raises", "misses a package", "is no Python", "exits", "asks for an unknown argument", "has an unknown hook"],
)
def test_a_broken_plugin_is_named_and_left_out_and_the_run_goes_on(
    train: Train,
    others: list[EntryPoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: list[logging.LogRecord],
    text: str,
    said: str,
) -> None:
    others.append(module(tmp_path, "a_broken_plugin", text, monkeypatch))
    trainer = train(val=False)
    assert trainer.xpu.precision.name == "bf16"
    assert trainer.last.exists()
    warnings = [r.getMessage() for r in log if r.levelno >= logging.WARNING and "a_broken_plugin" in r.getMessage()]
    assert len(warnings) == 1
    assert said in warnings[0]
    assert plugins.manager().get_plugin("a_broken_plugin") is None
