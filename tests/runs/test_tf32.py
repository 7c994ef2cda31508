"""float32 is IEEE float32 in a run on an XPU, and tf32 where asked for; afterwards the process has what it had."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import devices

from ..conftest import Train

Switched = Callable[..., list[Any]]


@pytest.fixture
def switch(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return PyTorch's switches; those that an XPU build has and this one hasn't are added."""
    switches: Any = torch.backends.mkldnn
    if getattr(switches, "allow_tf32", None) is None:
        held = {"value": False}
        added = property(lambda self: held["value"], lambda self, value: held.update(value=value))
        monkeypatch.setattr(type(switches), "allow_tf32", added, raising=False)
    before = switches.allow_tf32
    yield switches
    switches.allow_tf32 = before


@pytest.fixture
def switched(train: Train) -> Switched:
    """Return a function that trains, and returns how the switch was in each step."""

    def run(on_batch: Callable[[Any], None] = lambda trainer: None, **more: Any) -> list[Any]:
        seen: list[Any] = []

        def look(trainer: Any) -> None:
            seen.append(getattr(torch.backends.mkldnn, "allow_tf32", None))
            on_batch(trainer)

        train(callbacks={"on_train_batch_end": look}, val=False, amp=False, **more)
        return seen

    return run


def said(log: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in log if re.search("XPU: .*tf32", record.getMessage())]


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("before", [False, True])
def test_float32_is_ieee_float32_whatever_the_process_had_set(switch: Any, switched: Switched, before: bool) -> None:
    switch.allow_tf32 = before
    assert switched() == [False, False]
    assert switch.allow_tf32 is before


def test_tf32_is_on_where_asked_for_and_off_again_afterwards(
    switch: Any, switched: Switched, log: list[logging.LogRecord]
) -> None:
    assert switched(xpu_tf32=True) == [True, True]
    assert switch.allow_tf32 is False
    assert said(log) == ["XPU: float32 convolutions and matrix products are computed in tf32, as xpu_tf32=True asks"]


def test_a_run_that_fails_puts_the_switch_back(switch: Any, switched: Switched) -> None:
    def fail(trainer: Any) -> None:
        raise ValueError("in the midst of it")

    with pytest.raises(ValueError, match="in the midst"):
        switched(fail, xpu_tf32=True)
    assert switch.allow_tf32 is False


@pytest.mark.xpu_profile("arc-a770")  # has matrix units, but none for tf32
def test_a_device_without_tf32_says_so_and_computes_in_float32(
    switch: Any, switched: Switched, log: list[logging.LogRecord]
) -> None:
    switch.allow_tf32 = True
    assert devices.info(0).has_matrix_units
    assert switched(xpu_tf32=True) == [False, False]
    (warning,) = said(log)
    assert "xpu_tf32=True has no effect: xpu:0 Intel Arc A770 Graphics has no tf32" in warning


def test_a_pytorch_without_the_switch_says_so(
    xpu: torch.device, switched: Switched, log: list[logging.LogRecord]
) -> None:
    if getattr(torch.backends.mkldnn, "allow_tf32", None) is not None:
        pytest.skip("this PyTorch has it")
    assert switched(xpu_tf32=True) == [None, None]
    (warning,) = said(log)
    assert f"PyTorch {torch.__version__} has no tf32 on XPUs" in warning


def test_a_run_on_the_cpu_leaves_the_switch_alone(switch: Any, switched: Switched) -> None:
    switch.allow_tf32 = True
    assert switched(device="cpu") == [True, True]
