"""How a process is given some of a machine's XPUs: `ZE_AFFINITY_MASK`, and what Ray's numbers become."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import affinity
from yolo_xpu_trainer.errors import DeviceError
from yolo_xpu_trainer.upstream.ray_trials import _assigned

MASK, SELECTOR = affinity.MASK, affinity.SELECTOR


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, None),
        ({MASK: ""}, None),
        ({MASK: "2,3"}, ("2", "3")),
        ({MASK: " 0.1, 1.0"}, ("0.1", "1.0")),
        ({SELECTOR: "level_zero:gpu"}, None),
        ({SELECTOR: "*:gpu", MASK: "1"}, ("1",)),
        ({SELECTOR: "level_zero:1,0"}, ("1", "0")),
        ({SELECTOR: "level_zero:1", MASK: "4,6"}, ("6",)),
    ],
)
def test_names_are_told_by_the_environment(environment: dict[str, str], names: tuple[str, ...] | None) -> None:
    assert affinity.names_by_environment(environment) == names


@pytest.mark.parametrize(
    "selector", ["!opencl:*", "opencl:gpu", "level_zero:0.*", "level_zero:2", "level_zero:0;cuda:*"]
)
def test_names_are_refused_where_a_selector_leaves_them_open(selector: str) -> None:
    with pytest.raises(DeviceError, match=MASK) as caught:
        affinity.names_by_environment({SELECTOR: selector, MASK: "0,1"})
    assert caught.value.requested == selector


@pytest.mark.xpu_profile("max-1550")
def test_names_are_compared_with_the_xpus_that_there_are(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MASK, raising=False)
    assert affinity.names() == ("0", "1")
    monkeypatch.setenv(MASK, "3,5")
    assert affinity.names() == ("3", "5")
    monkeypatch.setenv(MASK, "3,5,7")
    with pytest.raises(DeviceError, match="ZE_AFFINITY_MASK='3,5,7' names 3 XPUs, but this process sees 2"):
        affinity.names()


GIVEN = """
import torch
if {asked}: torch.xpu.device_count(), torch.xpu.init()
from yolo_xpu_trainer import affinity
from yolo_xpu_trainer.errors import DeviceError
from xpu_simulator import native
try:
    affinity.give({named})
except DeviceError as error:
    print(error)
else:
    print([native.call("physical_index", i) for i in range(torch.xpu.device_count())])
"""


def given(named: list[str], asked: bool = False, **variables: str) -> str:
    environment = {**os.environ, "XPU_SIMULATOR": "max-1550", **variables}
    command = [sys.executable, "-c", GIVEN.format(named=named, asked=asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_process_sees_what_it_is_given() -> None:
    assert given(["1"], ONEAPI_DEVICE_SELECTOR="level_zero:1") == "[1]"


def test_a_process_that_asked_before_is_refused() -> None:
    assert "came too late" in given(["1"], asked=True)


@pytest.mark.parametrize(
    ("numbers", "named", "environment", "own"),
    [
        (["1"], ["2", "3"], {}, ["3"]),  # of those that the search was given
        (["0", "1"], ["2", "3"], {MASK: "0,1"}, ["2", "3"]),  # Ray has dpctl, and has hidden the wrong ones
        ([1], None, {}, ["1"]),  # a machine of a cluster
        (["1"], None, {MASK: "4,6"}, ["6"]),  # whose Ray was started with a mask, and counts what it leaves
        (["6"], None, {MASK: "6"}, ["6"]),  # whose Ray has dpctl: it numbers by the mask
        (["1"], None, {SELECTOR: "level_zero:1"}, ["1"]),  # an older Ray with dpctl
    ],
)
def test_ray_s_numbers_become_a_mask(
    numbers: list[Any],
    named: list[str] | None,
    environment: dict[str, str],
    own: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (MASK, SELECTOR):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _assigned(numbers, named) == own
