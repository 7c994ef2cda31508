"""The device of a rank, and what one rank learns of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from yolo_xpu_trainer import devices, ranks, watchdog
from yolo_xpu_trainer.errors import NoSuchXPUError
from yolo_xpu_trainer.watchdog import Watchdog


@pytest.mark.xpu_profile("max-1550")
@pytest.mark.parametrize(
    ("requested", "expected"),
    [("xpu", [0, 1]), (None, [0, 1]), ("xpu:1,0", [1, 0]), ([1, 0], [1, 0]), ("xpu:1", [1]), ("cpu", [None, None])],
)
def test_each_process_of_a_machine_has_a_device_of_its_own(
    xpu: torch.device, requested: object, expected: list[int | None]
) -> None:
    found = [devices.of_rank(requested, i, prefer_xpu=True) for i in range(len(expected))]
    assert found == expected


@pytest.mark.xpu_profile("max-1550")
@pytest.mark.parametrize("requested", ["xpu", "xpu:1"])
def test_more_processes_than_devices_are_an_error(xpu: torch.device, requested: str) -> None:
    with pytest.raises(NoSuchXPUError, match="Start as many processes as XPUs"):
        devices.of_rank(requested, 2, prefer_xpu=True)


def test_a_launcher_that_shows_each_process_its_own_device_is_obeyed(
    xpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoSuchXPUError):
        devices.of_rank("xpu", 3, prefer_xpu=True)
    monkeypatch.setenv("ZE_AFFINITY_MASK", "3")
    assert devices.of_rank("xpu", 3, prefer_xpu=True) == 0


def test_a_process_of_ultralytics_own_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "4"), ("TORCHELASTIC_RUN_ID", "none")):
        monkeypatch.setenv(name, value)
    assert ranks.launched() == ranks.Launch(rank=3, local_rank=1, world_size=4)
    monkeypatch.setenv(ranks.CHILD_VARIABLE, "1")
    assert ranks.launched() is None
    monkeypatch.delenv(ranks.CHILD_VARIABLE)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks.launched() is None


# The watchdog


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what would have ended this process."""
    texts: list[str] = []
    monkeypatch.setattr(watchdog, "end_process", lambda text, *_: texts.append(text))
    monkeypatch.setattr(watchdog, "_PERIOD", 0.1)
    monkeypatch.setattr(watchdog, "_SILENCE", 1.5)
    return texts


@pytest.fixture
def make(ended: list[str]) -> Iterator[Callable[..., list[Watchdog]]]:
    """Return a function that makes the watchdogs of three ranks in this process."""
    made: list[Watchdog] = []
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)  # type: ignore[attr-defined]

    def of_three_ranks(patience: float = 600) -> list[Watchdog]:
        names = [f"rank {i}" for i in range(3)]
        for i in range(3):
            client = torch.distributed.TCPStore(  # type: ignore[attr-defined]
                "127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=5)
            )
            made.append(Watchdog(client, i, names, "run", patience))
        for one in made:
            one.start()
        return made

    yield of_three_ranks
    for one in made:
        one.stop()


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_error_of_one_rank_is_told_to_the_others(make: Callable[..., list[Watchdog]], ended: list[str]) -> None:
    first, second, third = make()
    second.fail("a broken label")
    third.fail("another one, of what came after")
    assert first.failure(wait=5) == "rank 1 failed: a broken label"
    wait_for(lambda: len(ended) >= 1)
    assert "is ended, because rank 1 failed: a broken label." in ended[0]


def test_a_rank_without_a_sign_of_life_is_named(make: Callable[..., list[Watchdog]], ended: list[str]) -> None:
    _, second, _ = make()
    second._stopped.set()  # as a process that is killed, which says nothing
    wait_for(lambda: len(ended) == 2)
    assert all("because rank 1 gave no sign of life" in text for text in ended)
    assert not any(text.startswith("rank 1") for text in ended)


def test_a_rank_that_hangs_is_named(make: Callable[..., list[Watchdog]], ended: list[str]) -> None:
    made = make(patience=1.0)
    for i, steps in enumerate((3, 3, 2)):
        for _ in range(steps):
            made[i].step()
    wait_for(lambda: len(ended) == 3)
    assert any("no rank got on for 1 s (xpu_rank_timeout); behind: rank 2" in text for text in ended)


def test_ranks_that_have_come_to_their_end_are_not_missed(
    make: Callable[..., list[Watchdog]], ended: list[str]
) -> None:
    first, second, third = make()
    second.stop()
    third.stop()
    time.sleep(2.5)
    assert not ended
    assert first.failure() == ""


def test_a_run_that_was_suspended_goes_on(
    make: Callable[..., list[Watchdog]], ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_PERIOD", 1.0)  # so that the clock is looked at before the others are heard of
    monkeypatch.setattr(watchdog, "_SILENCE", 3.0)
    suspended = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + suspended, sleep=time.sleep)
    monkeypatch.setattr(watchdog, "time", clock)
    first, second, _ = make()
    suspended = 60.0
    time.sleep(2)
    assert not ended
    second._stopped.set()
    wait_for(lambda: len(ended) == 2)
    assert all("because rank 1 gave no sign of life" in text for text in ended)
    assert first.failure()
