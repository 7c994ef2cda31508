"""Deterministic runs don't fill new memory; what the process had set is there again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch.utils.deterministic as switches
from ultralytics.utils import torch_utils

from ..conftest import Train


@pytest.fixture
def set_before(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Let the process have a setting, and Ultralytics be one that doesn't care for it, as before 8.4.190."""
    monkeypatch.setattr(torch_utils, "TORCH_2_2", False, raising=False)
    before = switches.fill_uninitialized_memory
    switches.fill_uninitialized_memory = request.param
    yield request.param
    switches.fill_uninitialized_memory = before


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("set_before", [True, False], indirect=True)
def test_new_memory_is_not_filled_while_a_run_lasts(train: Train, set_before: bool) -> None:
    seen: list[Any] = []
    train(callbacks={"on_train_batch_end": lambda trainer: seen.append(switches.fill_uninitialized_memory)}, val=False)
    assert set(seen) == {False}
    assert switches.fill_uninitialized_memory is set_before


@pytest.mark.parametrize("set_before", [True], indirect=True)
def test_a_run_that_fails_leaves_the_setting(train: Train, set_before: bool) -> None:
    def fail(trainer: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(callbacks={"on_train_batch_end": fail})
    assert switches.fill_uninitialized_memory is set_before


def test_ultralytics_own_default_is_back_after_a_run(train: Train) -> None:
    train(val=False)
    assert switches.fill_uninitialized_memory is True


@pytest.mark.parametrize("set_before", [True], indirect=True)
def test_a_run_on_the_cpu_is_ultralytics_own(train: Train, set_before: bool) -> None:
    seen: list[Any] = []
    note = {"on_train_batch_end": lambda trainer: seen.append(switches.fill_uninitialized_memory)}
    train(callbacks=note, val=False, device="cpu")
    assert set(seen) == {True}
