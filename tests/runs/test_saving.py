"""Checkpoints written from copies on the host: the same bytes, for a few waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from yolo_xpu_trainer import XPUDetectionTrainer

from ..conftest import Train


def during_the_save(train: Train, look: Any, **arguments: Any) -> None:
    """Train for an epoch and look at the trainer when it is about to save."""

    class Looking(XPUDetectionTrainer):
        def save_model(self) -> Any:
            look(self)
            return super().save_model()

    train(trainer=Looking, imgsz=64, val=False, **arguments)


def content(trainer: Any) -> dict[str, torch.Tensor]:
    """Return every tensor of the last checkpoint by name."""
    checkpoint = torch.load(trainer.last, map_location="cpu", weights_only=False)
    state = checkpoint["optimizer"]["state"]
    found = {f"{i}.{name}": v for i, entry in state.items() for name, v in entry.items() if isinstance(v, torch.Tensor)}
    return {**checkpoint["ema"].state_dict(), **found}


@pytest.mark.parametrize("optimizer", ["AdamW", "MuSGD"])
def test_the_checkpoint_holds_what_ultralytics_own_would(xpu: Any, train: Train, optimizer: str) -> None:
    from ultralytics.engine.trainer import BaseTrainer

    import xpu_simulator

    def compare(trainer: Any) -> None:
        BaseTrainer.save_model(trainer)
        theirs = content(trainer)
        with xpu_simulator.count() as counts:
            super(type(trainer), trainer).save_model()
        ours = content(trainer)
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) and theirs[name].dtype == ours[name].dtype for name in ours)
        assert all(tensor.is_contiguous() for tensor in ours.values())
        assert sum(counts.syncs.values()) <= 10
        assert trainer.ema.ema.training is False
        assert next(trainer.ema.ema.parameters()).device.type == "xpu"
        compared.append(len(ours))

    compared: list[int] = []
    during_the_save(train, compare, optimizer=optimizer)
    assert compared[0] > 800


def test_an_average_with_nan_is_mended_on_the_device_as_ultralytics_does(xpu: Any, train: Train) -> None:
    seen: list[Any] = []

    def poison(trainer: Any) -> None:
        weight = next(trainer.ema.ema.parameters())
        with torch.no_grad():
            weight[0, 0, 0, 0] = float("nan")
        seen.append((trainer, weight))

    during_the_save(train, poison)
    trainer, weight = seen[0]
    assert torch.isfinite(weight).all()
    assert torch.equal(weight, next(trainer.model.parameters()))
    best = torch.load(trainer.best, map_location="cpu", weights_only=False)["model"]
    assert all(torch.isfinite(tensor).all() for tensor in best.state_dict().values())


def test_a_device_with_no_room_left_can_still_save(xpu: Any, train: Train, monkeypatch: Any) -> None:
    joined = torch.cat
    refused: list[int] = []

    def full(tensors: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if tensors[0].device.type == "xpu":
            refused.append(len(tensors))
            raise torch.OutOfMemoryError("XPU out of memory.")
        return joined(tensors, *args, **kwargs)

    trainers: list[Any] = []

    def fill(trainer: Any) -> None:
        trainers.append(trainer)
        trainer.add_callback("on_model_save", lambda _: monkeypatch.setattr(torch, "cat", joined))
        monkeypatch.setattr(torch, "cat", full)

    during_the_save(train, fill)
    assert refused
    assert trainers[0].last.exists()


def test_nothing_is_copied_twice(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.engine import trainer as engine

    copied: list[Any] = []
    own = engine.deepcopy
    monkeypatch.setattr(engine, "deepcopy", lambda x: copied.append(x) or own(x))
    compared: list[int] = []

    def compare(trainer: Any) -> None:
        if not compared:
            compared.append(0)
            engine.BaseTrainer.save_model(trainer)
            assert len(copied) == 2  # the averaged model and the optimizer's state
            theirs = content(trainer)
            copied.clear()
            trainer.save_model()
            assert copied == []
            ours = content(trainer)
            assert theirs.keys() == ours.keys()
            assert all(
                torch.equal(theirs[name], ours[name]) and theirs[name].dtype == ours[name].dtype for name in ours
            )
            assert next(trainer.ema.ema.parameters()).dtype == torch.float32
            compared.append(len(ours))

    train(callbacks={"on_model_save": compare}, val=False, optimizer="AdamW", amp=False)
    assert compared[1] > 800


def test_users_code_that_saves_more_sees_what_was_averaged(train: Train) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    from yolo_xpu_trainer import XPUTrainer

    seen: list[torch.dtype] = []

    class Theirs(DetectionTrainer):
        def save_model(self) -> Any:
            saved = super().save_model()
            seen.append(next(self.ema.ema.parameters()).dtype)
            return saved

    class Mine(XPUTrainer, Theirs): ...

    train(trainer=Mine, val=False)
    assert set(seen) == {torch.float32}
