"""SYCL's persistent cache of kernels is never switched on by this package, and warned of where it may crash."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import pytest
import torch

from yolo_xpu_trainer.policies.kernel_cache import xpu_around_run
from yolo_xpu_trainer.upstream.process import process_rows

VARIABLE = "SYCL_CACHE_PERSISTENT"


@pytest.mark.parametrize(
    ("value", "runtime", "worker", "warned"),
    [
        ("1", "20250300", False, True),
        ("1", "20260000", False, True),
        ("1", "20260000", True, False),  # its parent said it
        ("1", "20250201", False, False),
        ("1", None, False, False),  # before torch 2.7
        ("0", "20260000", False, False),
        (None, "20260000", False, False),
    ],
)
def test_a_cache_that_may_crash_is_warned_of_where_it_is_on(
    value: str | None,
    runtime: str | None,
    worker: bool,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    log: list[logging.LogRecord],
) -> None:
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    monkeypatch.setattr(torch.version, "xpu", runtime, raising=False)
    process_rows().activate()
    with xpu_around_run(trainer=SimpleNamespace(xpu=SimpleNamespace(is_worker=worker))):
        assert os.environ.get(VARIABLE) == value
    assert [VARIABLE in record.getMessage() for record in log] == [True] * warned
