"""Checkpoints written from copies on the host: the same bytes, for a few waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..conftest import TrainingData

STEPS = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False, "device": "xpu:0"}


def during_the_save(data: str, look: Any, **arguments: Any) -> None:
    """Train for an epoch and look at the trainer when it is about to save."""
    from ultralytics import YOLO

    from yolo_xpu_trainer import XPUDetectionTrainer

    class Looking(XPUDetectionTrainer):
        def save_model(self) -> Any:
            look(self)
            return super().save_model()

    YOLO("yolo11n.yaml").train(trainer=Looking, data=data, **{**STEPS, **arguments})


def content(trainer: Any) -> dict[str, torch.Tensor]:
    """Return every tensor of the last checkpoint by name."""
    checkpoint = torch.load(trainer.last, map_location="cpu", weights_only=False)
    state = checkpoint["optimizer"]["state"]
    found = {f"{i}.{name}": v for i, entry in state.items() for name, v in entry.items() if isinstance(v, torch.Tensor)}
    return {**checkpoint["ema"].state_dict(), **found}


@pytest.mark.parametrize("optimizer", ["AdamW", "MuSGD"])
def test_the_checkpoint_holds_what_ultralytics_own_would(xpu: Any, data: TrainingData, optimizer: str) -> None:
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
    during_the_save(data("detect"), compare, optimizer=optimizer)
    assert compared[0] > 800


def test_an_average_with_nan_is_mended_on_the_device_as_ultralytics_does(xpu: Any, data: TrainingData) -> None:
    seen: list[Any] = []

    def poison(trainer: Any) -> None:
        weight = next(trainer.ema.ema.parameters())
        with torch.no_grad():
            weight[0, 0, 0, 0] = float("nan")
        seen.append((trainer, weight))

    during_the_save(data("detect"), poison)
    trainer, weight = seen[0]
    assert torch.isfinite(weight).all()
    assert torch.equal(weight, next(trainer.model.parameters()))
    best = torch.load(trainer.best, map_location="cpu", weights_only=False)["model"]
    assert all(torch.isfinite(tensor).all() for tensor in best.state_dict().values())


def test_a_device_with_no_room_left_can_still_save(xpu: Any, data: TrainingData, monkeypatch: Any) -> None:
    from yolo_xpu_trainer.policies import saving

    tries: list[int | None] = []

    def full(tensors: list[torch.Tensor], staged: int | None = None) -> list[torch.Tensor]:
        tries.append(staged)
        if staged is None:
            raise torch.OutOfMemoryError("XPU out of memory.")
        with_no_room = torch.cat
        monkeypatch.setattr(torch, "cat", None)  # which takes memory on the device
        try:
            return to_host(tensors, staged=staged)
        finally:
            monkeypatch.setattr(torch, "cat", with_no_room)

    to_host = saving.to_host
    monkeypatch.setattr(saving, "to_host", full)
    trainers: list[Any] = []
    during_the_save(data("detect"), trainers.append)
    assert tries == [None, 0]
    assert trainers[0].last.exists()


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("staged", [0, 100, 1 << 20])
def test_tensors_of_many_kinds_come_to_the_host_in_order(xpu: torch.device, staged: int) -> None:
    from yolo_xpu_trainer.transfer import to_host

    generator = torch.Generator().manual_seed(0)
    host = [
        torch.rand(3, 4, generator=generator),
        torch.tensor(7),
        torch.zeros(0, 5),
        torch.rand(2, 3, 5, 5, generator=generator).to(memory_format=torch.channels_last),
        torch.rand(300, generator=generator).half(),
        torch.tensor(1.5),
        torch.arange(9).view(3, 3).t(),
        torch.rand(64, generator=generator) > 0.5,
    ]
    mixed = [tensor if i == 5 else tensor.to(xpu) for i, tensor in enumerate(host)]
    for before, after in zip(host, to_host(mixed, staged), strict=True):
        assert after.device.type == "cpu"
        assert after.dtype == before.dtype
        assert torch.equal(after, before)
        assert after.is_contiguous()
