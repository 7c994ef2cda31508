"""What plain Ultralytics runs of users' own code, runs with this package too, with the same losses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import XPUDetectionTrainer, XPUTrainer

from ..conftest import Train
from . import own_code

pytestmark = pytest.mark.slow

# What reorders sums; bf16 rounds.
EXACT = {"xpu_channels_last": False, "xpu_fused_optimizer": False, "amp": False}


def collected(callbacks: dict[str, Callable[[Any], None]], losses: list[float]) -> dict[str, Callable[[Any], None]]:
    """Return the callbacks, with one more that notes each batch's loss."""

    def note(trainer: Any) -> None:
        losses.append(trainer.loss.item())
        if "on_train_batch_end" in callbacks:
            callbacks["on_train_batch_end"](trainer)

    return {**callbacks, "on_train_batch_end": note}


def on_xpu(theirs: type) -> type:
    """Return a user's trainer with the mixin in front of it."""
    return type(f"XPU{theirs.__name__}", (XPUTrainer, theirs), {"__module__": __name__})


@pytest.mark.parametrize("theirs", own_code.TRAINERS, ids=lambda trainer: trainer.__name__)
def test_a_users_trainer_gives_the_losses_that_it_gives_in_plain_ultralytics(
    xpu: torch.device, train: Train, log: list[logging.LogRecord], empty_figures: None, theirs: Any
) -> None:
    arguments = getattr(theirs, "ARGUMENTS", {})
    callbacks = getattr(theirs, "CALLBACKS", {})
    expected: list[float] = []
    train(plain=True, trainer=theirs, device="xpu:0", amp=False, callbacks=collected(callbacks, expected), **arguments)
    found: list[float] = []
    trainer = train(trainer=on_xpu(theirs), callbacks=collected(callbacks, found), **EXACT, **arguments)
    assert trainer.xpu is not None
    assert expected
    assert found == expected
    assert not [r for r in log if "is switched off" in r.getMessage()]


@pytest.mark.parametrize("theirs", own_code.TRAINERS[:3], ids=lambda trainer: trainer.__name__)
def test_a_users_trainer_runs_with_workers_and_prefetch(
    xpu: torch.device, train: Train, empty_figures: None, theirs: Any
) -> None:
    losses: list[list[float]] = [[], []]
    for seen, prefetch in zip(losses, (0, 2), strict=True):
        train(trainer=on_xpu(theirs), callbacks=collected({}, seen), workers=1, xpu_prefetch=prefetch, **EXACT)
    assert losses[0] == losses[1]


def test_a_loss_with_layers_of_its_own_trains_in_bf16(xpu: torch.device, train: Train, empty_figures: None) -> None:
    trainer = train(trainer=on_xpu(own_code.LookingTrainer), amp="bf16", imgsz=64)
    assert trainer.xpu.precision.name == "bf16"
    assert not trainer.xpu.recovery.off


def test_methods_that_users_put_on_ultralytics_classes_see_what_they_would_see(
    xpu: torch.device, train: Train, empty_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.models.yolo.detect import DetectionTrainer

    preprocess, build = DetectionTrainer.preprocess_batch, BaseTrainer.build_optimizer
    steps: list[int] = []

    def preprocess_batch(self: Any, batch: dict[str, Any]) -> dict[str, Any]:
        batch["img"] = torch.from_numpy(batch["img"].numpy().copy())
        return preprocess(self, batch)

    def build_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer = build(self, *args, **kwargs)
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        return optimizer

    monkeypatch.setattr(DetectionTrainer, "preprocess_batch", preprocess_batch)
    monkeypatch.setattr(BaseTrainer, "build_optimizer", build_optimizer)
    train(workers=1)
    assert steps


def test_the_epoch_that_a_run_began_with_stays_what_it_is(xpu: torch.device, train: Train, empty_figures: None) -> None:
    seen: list[int] = []
    train(callbacks={"on_train_batch_end": lambda trainer: seen.append(trainer.start_epoch)}, epochs=2)
    assert set(seen) == {0}


def test_a_users_mixin_in_front_of_ours_sees_what_it_would_see(
    xpu: torch.device, train: Train, empty_figures: None
) -> None:
    class Mixin:
        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            assert batch["img"].device.type == "cpu"
            assert batch["img"].dtype is torch.uint8
            batch = super().preprocess_batch(batch)  # type: ignore[misc]
            assert batch["img"].device == xpu
            assert batch["img"].dtype is torch.float32
            return batch

        def build_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            self.built = super().build_optimizer(*args, **kwargs)  # type: ignore[misc]
            return self.built

        def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
            self.loader = super().get_dataloader(*args, **kwargs)  # type: ignore[misc]
            return self.loader

    class MineTrainer(Mixin, XPUDetectionTrainer): ...

    trainer = train(trainer=MineTrainer)
    assert trainer.optimizer is trainer.built
    assert trainer.test_loader is trainer.loader
    assert all(group["fused"] for group in trainer.built.param_groups)


def test_bases_in_the_wrong_order_are_said(log: list[logging.LogRecord]) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    class MineTrainer(DetectionTrainer, XPUTrainer): ...

    (record,) = log
    assert "Write `class MineTrainer(XPUTrainer, DetectionTrainer)`" in record.getMessage()


def test_two_trainings_at_once_in_one_thread_are_each_their_own(
    xpu: torch.device, train: Train, empty_figures: None
) -> None:
    """A callback trains another model: what is patched for it is taken back, and what the outer one has stays."""

    def losses(nested: bool) -> list[float]:
        seen: list[float] = []

        def inner(trainer: Any) -> None:
            if nested and not seen:
                state = torch.get_rng_state()
                train(epochs=1, seed=3, amp=False, xpu_prefetch=0, name="inner")
                torch.set_rng_state(state)

        train(callbacks=collected({"on_train_epoch_start": inner}, seen), epochs=2, **EXACT)
        return seen

    assert len(losses(nested=True)) == len(losses(nested=False))
