"""The device of a rank, and what one rank learns of the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import devices, elastic, process_group, ranks, watchdog
from yolo_xpu_trainer.errors import CollectivesError, NoSuchXPUError
from yolo_xpu_trainer.process_group import Group
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
@pytest.mark.parametrize("requested", ["xpu:1", 1, torch.device("xpu", 1)], ids=str)
def test_a_script_may_name_each_process_its_own_device(xpu: torch.device, requested: object) -> None:
    assert devices.of_rank(requested, 1, prefer_xpu=True) == 1


@pytest.mark.xpu_profile("max-1550")
@pytest.mark.parametrize("requested", ["xpu", "xpu:1"])
def test_more_processes_than_devices_are_an_error(xpu: torch.device, requested: str) -> None:
    with pytest.raises(NoSuchXPUError, match=r"Use device='xpu'.* start as many processes as XPUs"):
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
    monkeypatch.setattr(watchdog, "_SILENCE", 2.0)
    suspended = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + suspended, sleep=time.sleep)
    monkeypatch.setattr(watchdog, "time", clock)
    first, second, _ = make()
    suspended = 60.0
    time.sleep(1.5)
    assert not ended
    second._stopped.set()
    wait_for(lambda: len(ended) == 2)
    assert all("because rank 1 gave no sign of life" in text for text in ended)
    assert first.failure()


def _serve(port: Any) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)  # type: ignore[attr-defined]
    port.send(store.port)
    time.sleep(300)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_rank_comes_to_its_end_though_the_store_does_not_answer(ended: list[str]) -> None:
    processes = multiprocessing.get_context("fork")
    here, there = processes.Pipe()
    server = processes.Process(target=_serve, args=(there,), daemon=True)
    server.start()
    try:
        assert here.poll(20)
        client = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", here.recv(), is_master=False, timeout=timedelta(seconds=30)
        )
        one = Watchdog(client, 0, ["rank 0"], "run", patience=600)
        one.start()
        time.sleep(0.3)
        os.kill(server.pid or 0, signal.SIGSTOP)
        time.sleep(0.3)  # by now the watchdog's own thread waits for an answer
        ending = threading.Thread(target=one.stop, daemon=True)
        ending.start()
        ending.join(8)
        assert not ending.is_alive()
    finally:
        server.kill()
        server.join()


def test_a_rank_that_is_ended_by_sigterm_is_no_finished_one(make: Callable[..., list[Watchdog]]) -> None:
    first, second, _ = make()
    group = object.__new__(Group)
    group.watchdog, group._handler, group._own = second, None, False
    group.close(process_group._TerminatedError(143))
    assert first.failure(wait=5) == "rank 1 failed: ended by SIGTERM"


# Coming together


@pytest.mark.parametrize("address", [None, "127.0.0.1"], ids=["no address", "nobody there"])
def test_processes_that_do_not_come_together_say_so_and_leave_sigterm_as_it_was(
    xpu: torch.device, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    if address is not None:
        monkeypatch.setenv("MASTER_ADDR", address)
        monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(process_group, "_TOGETHER", 1.0)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(CollectivesError, match="Rank 1 of 2 can't come together"):
        Group(ranks.Launch(rank=1, local_rank=0, world_size=2), devices.info(0), timeout=10800)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_group_can_be_left_from_another_thread() -> None:
    group = object.__new__(Group)
    group.watchdog, group._handler, group._own = None, signal.SIG_DFL, False
    errors: list[BaseException] = []

    def leave() -> None:
        try:
            group.close()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert not errors


# A run that is started again


class Script:
    """What a script's calls of `train()` find, in processes that torchrun starts one after the other."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, monkeypatch
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
        self.start()

    def start(self, restarts: int = 0) -> None:
        self.launch = ranks.Launch(rank=0, local_rank=0, world_size=2, run_id="run", restarts=restarts)
        self._patch.setattr(elastic, "_trainings", 0)

    def train(self, name: str = "train", *, finish: bool = False) -> tuple[str, bool]:
        """Begin a training; return its folder's name, and whether it goes on with what was there."""
        from ultralytics.cfg import get_cfg

        group: Any = SimpleNamespace(
            launch=self.launch, gather=lambda value: [value], agree=lambda value: value, share=lambda *_: True
        )
        args = get_cfg(overrides={"project": str(self._folder), "name": name, "task": "detect", "mode": "train"})
        last = elastic.settle_folder(args, group)
        folder = Path(args.save_dir)
        elastic.leave_note(folder, self.launch)
        (folder / "weights").mkdir(exist_ok=True)
        torch.save({"epoch": 0, "train_args": {"epochs": 3}}, folder / "weights" / "last.pt")
        if finish:
            elastic.remove_note(folder)
        return folder.name, last is not None


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(tmp_path, monkeypatch)


def test_a_run_that_is_started_again_goes_on(script: Script) -> None:
    first = script.train()
    script.start(restarts=1)
    assert first[1] is False
    assert script.train() == (first[0], True)


def test_a_name_that_begins_with_another_one_is_another_run(script: Script) -> None:
    script.train("coco8-seg")
    script.start(restarts=1)
    assert script.train("coco8") == ("coco8", False)


def test_a_name_with_brackets_is_found(script: Script) -> None:
    script.train("[a] run")
    script.start(restarts=1)
    assert script.train("[a] run") == ("[a] run", True)


def test_a_second_try_in_one_process_is_a_run_of_its_own(script: Script) -> None:
    first = script.train()
    second = script.train()
    assert second[0] != first[0]
    assert not second[1]


def test_the_second_training_of_a_script_goes_on_as_the_second_one(script: Script) -> None:
    script.train(finish=True)
    second = script.train()
    script.start(restarts=1)
    assert script.train(finish=True)[1] is False
    assert script.train() == (second[0], True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x02"], ids=["empty", "cut", "opcode"])
def test_a_damaged_checkpoint_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    assert elastic._epoch(tmp_path / "last.pt") is None
