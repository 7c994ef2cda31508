"""The progress line shows losses that lag behind, and nobody but the line sees anything else than the losses."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

import xpu_simulator
from yolo_xpu_trainer import XPUDetectionTrainer, devices
from yolo_xpu_trainer.plugins import hooks
from yolo_xpu_trainer.policies import progress
from yolo_xpu_trainer.policies.progress import Readings
from yolo_xpu_trainer.run import Precision, Run

from ..conftest import Train
from ..options import options

SAME = {"imgsz": 64, "epochs": 2, "val": False, "amp": False, "device": "xpu:0", "optimizer": "AdamW", "save": False}
OURS = {"xpu_log_every": 1e9, "xpu_channels_last": False, "xpu_fused_optimizer": False}  # the same arithmetic


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the progress lines of trainings."""
    import ultralytics.engine.trainer as upstream

    found: list[str] = []
    set_description = upstream.TQDM.set_description

    def remember(self: Any, text: str) -> None:
        found.append(text)
        set_description(self, text)

    monkeypatch.setattr(upstream.TQDM, "set_description", remember)
    return found


def shown(line: str) -> list[float]:
    """Return the losses in a progress line."""
    return [float(value) for value in re.split(r"\s+", line.strip())[2:-2]]


def numbers(means: Any) -> list[float]:
    return [value.item() for value in means.values()]


def test_an_epochs_last_losses_are_shown_exactly(train: Train, lines: list[str]) -> None:
    means: list[list[float]] = []
    note = {"on_train_epoch_end": lambda trainer: means.append(numbers(trainer.tloss))}
    batches = len(train(callbacks=note, **SAME, **OURS).train_loader)
    for epoch, exact in enumerate(means):
        assert shown(lines[(epoch + 1) * batches - 1]) == pytest.approx(exact, rel=1e-3)


# Callbacks


def look(trainer: Any) -> tuple[Any, ...]:
    """Do with a trainer's mean losses what users do."""
    means = trainer.tloss
    values = means.values()
    return (
        type(means),
        {type(value) for value in values},
        numbers(means),
        [numbers(means) for _ in range(2)],
        float(max(values)),
        [float(v) for v in copy.deepcopy(means).values()],
        [float(v) for v in tree_map(lambda v: v * 2, means).values()],
        [float(v) for v in {**means}.values()],
        {f"train/{k}": round(float(v), 5) for k, v in means.items()},
    )


@pytest.mark.parametrize("event", ["on_train_batch_end", "on_train_epoch_end", "on_fit_epoch_end"])
def test_callbacks_see_what_they_see_in_plain_ultralytics(train: Train, event: str) -> None:
    def seen(**more: Any) -> list[Any]:
        found: list[Any] = []
        train(callbacks={event: lambda trainer: found.append(look(trainer))}, **SAME, **more)
        return found

    theirs = seen(plain=True)
    assert seen(**OURS) == theirs
    assert theirs


@pytest.mark.parametrize("kind", ["in place", "items", "replaced", "deleted"])
def test_what_callbacks_make_of_the_losses_stays(train: Train, kind: str) -> None:
    def change(trainer: Any) -> None:
        if kind == "in place":
            trainer.tloss["box_loss"].add_(1)
        elif kind == "items":
            trainer.tloss["box_loss"] = trainer.tloss["box_loss"] + 1
        elif kind == "replaced":
            trainer.tloss = {key: value + 1 for key, value in trainer.tloss.items()}
        else:
            del trainer.tloss
            trainer.tloss = dict.fromkeys(("box_loss", "cls_loss", "dfl_loss"), torch.ones(1, device="xpu")[0])

    def means(**more: Any) -> list[list[float]]:
        found: list[list[float]] = []
        note = {
            "on_train_batch_end": change,
            "on_train_epoch_end": lambda trainer: found.append(numbers(trainer.tloss)),
        }
        train(callbacks=note, **SAME, **more)
        return found

    assert means(**OURS) == means(plain=True)


# Trainers


class Labels:
    """Labels its losses by their values, and reads them in a step."""

    read: list[Any]

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        if loss_items is None:
            return super().label_loss_items(loss_items, prefix)  # type: ignore[misc]
        self.read = [*getattr(self, "read", []), type(loss_items), numbers(loss_items), list(loss_items.values())]
        return dict(zip((f"{prefix}/{k}" for k in loss_items), numbers(loss_items), strict=True))

    def optimizer_step(self) -> None:
        self.read = [*getattr(self, "read", []), type(self.tloss), numbers(self.tloss)]  # type: ignore[attr-defined]
        super().optimizer_step()  # type: ignore[misc]


class LabelsXPU(Labels, XPUDetectionTrainer): ...


class LabelsPlain(Labels, DetectionTrainer): ...


def test_a_trainers_own_methods_see_what_they_see_in_plain_ultralytics(train: Train) -> None:
    ours = train(trainer=LabelsXPU, **SAME, **OURS)
    theirs = train(trainer=LabelsPlain, plain=True, **SAME)
    assert str(ours.read) == str(theirs.read)
    assert dict in theirs.read


class Property:
    """Has mean losses of its own."""

    means: Any = None

    @property
    def tloss(self) -> Any:
        return self.means

    @tloss.setter
    def tloss(self, means: Any) -> None:
        self.means = means if means is None else {key: value * 2 for key, value in means.items()}


class PropertyXPU(Property, XPUDetectionTrainer): ...


class PropertyPlain(Property, DetectionTrainer): ...


def test_a_trainer_with_losses_of_its_own_shows_those(train: Train, lines: list[str]) -> None:
    ours = numbers(train(trainer=PropertyXPU, **SAME, **OURS).means)
    theirs = numbers(train(trainer=PropertyPlain, plain=True, **SAME).means)
    assert ours == theirs
    half = len(lines) // 2
    assert [shown(line) for line in lines[:half]] == [shown(line) for line in lines[half:]]


class OddLosses(DetectionModel):
    """Gives losses that one copy can't read: on the host, of another dtype."""

    def loss(self, batch: Any, preds: Any = None) -> Any:
        loss, items = super().loss(batch, preds)
        return loss, {**items, "host": torch.tensor(1234.5), "whole": torch.tensor(7, device=loss.device)}


class OddXPU(XPUDetectionTrainer):
    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        return OddLosses(cfg, nc=self.data["nc"], verbose=False)


def test_losses_of_any_kind_are_shown(train: Train, lines: list[str]) -> None:
    train(trainer=OddXPU, **SAME, **OURS)
    assert all(line.split()[5:7] == ["1234", "7"] for line in lines)


# Two at a time


def test_a_training_within_a_training_has_a_line_of_its_own(train: Train, lines: list[str]) -> None:
    inner_lines: list[str] = []
    inner_means: list[list[float]] = []
    outer_means: list[list[float]] = []

    def nest(trainer: Any) -> None:
        if inner_means:
            return
        before = len(lines)
        note = {"on_train_epoch_end": lambda trainer: inner_means.append(numbers(trainer.tloss))}
        train(callbacks=note, **SAME, **OURS)
        inner_lines.extend(lines[before:])
        del lines[before:]

    note = {
        "on_train_batch_end": nest,
        "on_train_epoch_end": lambda trainer: outer_means.append(numbers(trainer.tloss)),
    }
    trainer = train(callbacks=note, **SAME, **OURS)
    batches = len(trainer.train_loader)
    for means, shown_lines in ((outer_means, lines), (inner_means, inner_lines)):
        assert len(shown_lines) == 2 * batches
        for epoch, exact in enumerate(means):
            assert shown(shown_lines[(epoch + 1) * batches - 1]) == pytest.approx(exact, rel=1e-3)
    assert "tloss" not in vars(BaseTrainer)


def test_losses_in_one_tensor_are_read_as_seldom(xpu: torch.device) -> None:
    """Ultralytics before 8.4.105 has such."""
    readings = Readings(seconds=100.0)
    readings.note(starts=True, length=3)
    shown = []
    with xpu_simulator.count() as counts:
        for batch in range(3):
            losses = torch.full((3,), float(batch), device=xpu)
            readings.note(starts=False, length=3)
            shown.append([float(loss) for loss in readings.of_vector(losses)])
            assert not readings.awaited
    assert shown == [[0.0] * 3, [0.0] * 3, [2.0] * 3]  # an epoch's last are exact
    assert sum(counts.syncs.values()) == 2


def test_a_classifiers_loss_in_one_number_is_read_as_seldom(xpu: torch.device) -> None:
    """Ultralytics before 8.4.105 has such, and goes through a vector of it."""
    run = Run(devices.info(0), (0,), Precision("fp32", "the test says so"), options(), hooks=hooks())
    readings = run.stash[progress._READINGS] = Readings(seconds=100.0)
    loop: Any = SimpleNamespace(
        f_globals={"__name__": progress._LOOP[0]}, f_code=SimpleNamespace(co_name=progress._LOOP[1])
    )
    readings.note(starts=True, length=3)
    seen = []
    with xpu_simulator.count() as counts:
        for batch in range(3):
            readings.note(starts=False, length=3)
            mean = progress._shown(run, torch.tensor(float(batch), device=xpu), loop)
            assert not len(mean.shape)
            assert type(mean * 2) is torch.Tensor
            seen += [float(loss) for loss in torch.unsqueeze(mean, 0)]
    assert seen == [0.0, 0.0, 2.0]
    assert counts.item_syncs + counts.d2h == 2
