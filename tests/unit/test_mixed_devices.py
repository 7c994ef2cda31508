"""GPUs of different kinds in one run: the slower one is named, with the time that says so."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from yolo_xpu_trainer.policies import mixed_devices
from yolo_xpu_trainer.process_group import Peer

KINDS = ("Intel Arc B580 Graphics", "Intel Arc A770 Graphics")


class _Info(SimpleNamespace):
    def __str__(self) -> str:
        return f"{self.device} {self.name}"


def _trainer(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], names: tuple[str, ...], **run: Any) -> Any:
    """Return a trainer whose GPUs have these names, and take so many seconds for a matrix product."""
    found = [_Info(device=f"xpu:{index}", name=name) for index, name in enumerate(names)]
    monkeypatch.setattr(mixed_devices, "info", found.__getitem__)
    monkeypatch.setattr(mixed_devices, "_seconds", lambda run, device: seconds[device])
    given = {"group": None, "is_worker": False, "indices": tuple(range(len(names))), "device": found[0], **run}
    return SimpleNamespace(xpu=SimpleNamespace(**given))


def _said(trainer: Any, log: list[logging.LogRecord]) -> list[str]:
    with mixed_devices.xpu_around_run(trainer):
        pass
    return [record.getMessage() for record in log]


@pytest.mark.parametrize("slower", [0, 1])
def test_the_slower_of_two_kinds_in_one_machine_is_named(
    slower: int, monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]
) -> None:
    seconds = {f"xpu:{slower}": 0.004, f"xpu:{1 - slower}": 0.001}
    (said,) = _said(_trainer(monkeypatch, seconds, KINDS), log)
    assert f"waits for the slowest: xpu:{slower} {KINDS[slower]}, where a matrix product took 4 ms" in said
    assert said.endswith(f"and 1 ms on xpu:{1 - slower} {KINDS[1 - slower]}.")


@pytest.mark.parametrize("slower", [0, 1])
def test_the_slower_of_two_kinds_on_two_machines_is_named_by_rank_0_alone(
    slower: int, monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]
) -> None:
    peers = [Peer(i, 0, str(i), f"node{i}", f"xpu:0 {name}", name) for i, name in enumerate(KINDS)]
    times = [0.004 if rank == slower else 0.001 for rank in range(2)]
    for rank in (1, 0):
        group = SimpleNamespace(peers=peers, gather=lambda mine: times, launch=SimpleNamespace(rank=rank))
        said = _said(_trainer(monkeypatch, {"xpu:0": times[rank]}, KINDS[:1], group=group), log)
        assert len(said) == (rank == 0)
    assert f"waits for the slowest: rank {slower} (node{slower}, xpu:0 {KINDS[slower]}), where" in said[0]


def test_gpus_of_one_kind_are_not_measured(monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]) -> None:
    assert _said(_trainer(monkeypatch, {}, KINDS[:1] * 2), log) == []


def test_a_worker_leaves_it_to_its_parent(monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]) -> None:
    assert _said(_trainer(monkeypatch, {}, KINDS, is_worker=True), log) == []
