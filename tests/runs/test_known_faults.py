"""A run on a PyTorch that is known to compute something wrong is warned of."""

from __future__ import annotations

import logging

import pytest
import torch

from ..conftest import Train


def warnings_in(records: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("version", "warned"), [("2.12.1+xpu", False), ("2.13.0+xpu", True), ("2.13.1", True), ("2.14.1", False)]
)
def test_a_run_on_pytorch_2_13_is_warned_of_topk_and_nonzero(
    train: Train, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch, version: str, warned: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert train(val=False).last.exists()
    said = [text for text in warnings_in(log) if "`topk`" in text]
    assert len(said) == warned
    for text in said:
        assert version in text
        assert "`nonzero`" in text
        assert "--index-url https://download.pytorch.org/whl/xpu --upgrade" in text


def test_a_run_on_the_cpu_is_not(train: Train, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0+xpu")
    train(val=False, device="cpu")
    assert not [text for text in warnings_in(log) if "`topk`" in text]
