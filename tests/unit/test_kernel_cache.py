"""SYCL's persistent cache of kernels: switched on where it is safe, and warned of where it may crash."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from yolo_xpu_trainer.policies import kernel_cache
from yolo_xpu_trainer.policies.kernel_cache import xpu_around_run

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
    with xpu_around_run(trainer=SimpleNamespace(xpu=SimpleNamespace(is_worker=worker))):
        assert os.environ.get(VARIABLE) == value
    assert [VARIABLE in record.getMessage() for record in log] == [True] * warned


@pytest.mark.parametrize(
    ("value", "runtime", "compiled", "after"),
    [
        (None, "20250001", True, "1"),
        (None, None, True, "1"),  # before torch 2.7
        (None, "20250300", True, None),
        (None, None, False, None),  # not a build for XPUs
        ("0", "20250001", True, "0"),
    ],
)
def test_kernels_are_kept_where_that_is_safe_and_the_user_says_nothing(
    value: str | None, runtime: str | None, compiled: bool, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")  # for it to be put back
    monkeypatch.delenv(VARIABLE)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    monkeypatch.setattr(torch.version, "xpu", runtime, raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
    monkeypatch.setattr(torch.xpu, "_is_compiled", lambda: compiled)
    kernel_cache.keep()
    assert os.environ.get(VARIABLE) == after


@pytest.mark.parametrize("runtime", ["20250001", "20260000"])
@pytest.mark.parametrize(
    ("value", "compiled", "after"), [(None, True, "8192"), ("100", True, "100"), (None, False, None)]
)
def test_onednn_keeps_more_primitives_where_the_user_says_nothing(
    value: str | None, compiled: bool, after: str | None, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    for variable in (name, VARIABLE):
        monkeypatch.setenv(variable, "")  # for it to be put back
        monkeypatch.delenv(variable)
    if value is not None:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.version, "xpu", runtime, raising=False)
    monkeypatch.setattr(torch.xpu, "_is_compiled", lambda: compiled)
    kernel_cache.keep()
    assert os.environ.get(name) == after


@pytest.mark.parametrize(("plugins", "found"), [("*", "1"), ("-kernel_cache", None), ("", "1")])
def test_importing_ultralytics_decides_it_unless_the_policy_is_blocked(
    plugins: str, found: str | None, tmp_path: Path
) -> None:
    code = (
        "import torch; torch.version.xpu = '20250001'; torch.xpu._is_compiled = lambda: True; import ultralytics, os; "
    )
    code += f"print('found', os.environ.get('{VARIABLE}'))"
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment["YOLO_XPU_PLUGINS"] = plugins
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"found {found}" in done.stdout
