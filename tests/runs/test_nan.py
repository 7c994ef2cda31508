"""NaN in a run's weights, and gradients that don't fit float16, cost it an epoch or a precision, not the run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from ..conftest import Train


def finite(trainer: Any) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


@pytest.mark.parametrize("amp", [False, "bf16", "fp16"])
def test_ultralytics_recovers_from_nan_by_the_last_checkpoint(
    train: Train, log: list[logging.LogRecord], amp: Any
) -> None:
    spoilt: list[int] = []

    def spoil(trainer: Any) -> None:
        if trainer.epoch == 1 and not spoilt:
            spoilt.append(1)
            next(trainer.model.parameters()).data.fill_(torch.nan)

    trainer = train(epochs=3, amp=amp, imgsz=64, callbacks={"on_train_epoch_start": spoil})
    assert spoilt
    assert finite(trainer)
    assert len([r for r in log if "recovering from last.pt" in r.getMessage()]) == 1
    assert trainer.epoch == 2


@pytest.mark.parametrize(
    ("profile", "goes_on_in"),
    [
        pytest.param("arc-b580", "bf16", marks=pytest.mark.xpu_profile("arc-b580")),
        pytest.param("core-ultra-155h", "fp32", marks=pytest.mark.xpu_profile("core-ultra-155h")),
    ],
)
def test_a_run_whose_gradients_never_fit_fp16_goes_on_in_another_precision(
    train: Train, log: list[logging.LogRecord], profile: str, goes_on_in: str
) -> None:
    names: list[str] = []
    before: list[torch.Tensor] = []

    def overflow(trainer: Any) -> None:
        weight = trainer.model.model[5].conv.weight
        before.append(weight.detach().clone())
        trainer.scaler._init_scale = 4.0
        # It names no trainer: that would be a cycle which is never collected.
        weight.register_hook(lambda g: g * torch.inf if names[-1:] in ([], ["fp16"]) else g)

    def note(trainer: Any) -> None:
        names.append(trainer.xpu.precision.name)

    callbacks = {"on_train_start": overflow, "on_train_batch_end": note}
    trainer = train(epochs=4, batch=4, nbs=4, amp="fp16", callbacks=callbacks, val=False)
    assert names[0] == "fp16"
    assert names[-1] == goes_on_in
    assert finite(trainer)
    assert not torch.equal(trainer.model.model[5].conv.weight.detach(), before[0])
    (line,) = [r.getMessage() for r in log if "training goes on in" in r.getMessage()]
    assert f"in {goes_on_in}, because gradients overflowed fp16 until their scale was 0." in line


def test_a_scale_that_comes_down_a_little_changes_nothing(train: Train) -> None:
    def overflow(trainer: Any) -> None:
        seen: list[int] = []
        weight = trainer.model.model[5].conv.weight
        weight.register_hook(lambda g: g * torch.inf if not seen and not seen.append(1) else g)

    trainer = train(epochs=2, batch=4, nbs=4, amp="fp16", callbacks={"on_train_start": overflow}, val=False)
    assert trainer.xpu.precision.name == "fp16"
    assert 1 <= trainer.scaler.get_scale() < 65536
