"""A file that is replaced is at every instant the old or the new one, whole."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from yolo_xpu_trainer.files import AtomicPath, remove_leftovers, replacing


@contextmanager
def disk_of(n: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: writing on is an error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("exists", [True, False])
def test_a_file_is_replaced_as_the_block_ends(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "a.pt"
    if exists:
        target.write_bytes(b"old")
    with replacing(target) as beside:
        beside.write_bytes(b"new")
        assert beside.parent == tmp_path
        assert target.exists() is exists
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_it_stays_where_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.pt"
    target.write_bytes(b"old")

    def fail() -> None:
        with replacing(target) as beside:
            beside.write_bytes(b"ne")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pt"]


def test_it_stays_where_nothing_is_written(tmp_path: Path) -> None:
    target = tmp_path / "a.pt"
    target.write_bytes(b"old")
    with replacing(target):
        pass
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("taken", [0, 1, 5000, 9999])
def test_it_stays_where_the_disk_takes_a_part(tmp_path: Path, taken: int) -> None:
    target = AtomicPath(tmp_path) / "a.pt"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="too large"), disk_of(taken):
        target.write_bytes(b"n" * 10_000)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pt"]


def test_paths_made_from_an_atomic_one_are_atomic(tmp_path: Path) -> None:
    path = AtomicPath(tmp_path)
    for made in (path / "a", (path / "b").with_suffix(".pt"), (path / "c" / "d").parent, path.joinpath("e")):
        assert type(made) is AtomicPath
        assert made.write_text("ä", encoding="utf-8") == 1
        assert made.read_text(encoding="utf-8") == "ä"


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "a.pt"
    link.symlink_to(tmp_path / "far" / "b.pt")
    (tmp_path / "far" / "b.pt").write_bytes(b"old")
    AtomicPath(link).write_bytes(b"new")
    assert link.is_symlink()
    assert (tmp_path / "far" / "b.pt").read_bytes() == b"new"


def test_the_files_mode_stays(tmp_path: Path) -> None:
    target = AtomicPath(tmp_path / "a.pt")
    target.write_bytes(b"old")
    target.chmod(0o640)
    target.write_bytes(b"new")
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("held", "replaced"), [(2, True), (100, False)])
def test_a_reader_that_holds_the_file_is_waited_for(
    tmp_path: Path, held: int, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    replace = os.replace

    def on_windows(*args: Any) -> None:
        tries.append(1)
        if len(tries) <= held:
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(*args)

    monkeypatch.setattr(os, "replace", on_windows)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    target = AtomicPath(tmp_path / "a.pt")
    Path(target).write_bytes(b"old")
    if replaced:
        target.write_bytes(b"new")
    else:
        with pytest.raises(PermissionError):
            target.write_bytes(b"new")
    assert target.read_bytes() == (b"new" if replaced else b"old")
    assert os.listdir(tmp_path) == ["a.pt"]


_WRITING = """
import sys
from yolo_xpu_trainer.files import AtomicPath
for i in range(1_000_000):
    AtomicPath(sys.argv[1]).write_bytes(bytes([i % 256]) * 3_000_000)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "a.pt"
    for i in range(6):
        process = subprocess.Popen([sys.executable, "-c", _WRITING, str(target)])
        while not target.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.05 * i)
        process.kill()
        process.wait()
        content = target.read_bytes()
        assert len(content) == 3_000_000
        assert len(set(content)) == 1
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["a.pt"]


def test_only_what_is_left_of_processes_that_are_gone_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kept = [f".a.pt.{os.getpid()}-00112233.part", ".a.pt.part", "a.pt", f".b.{gone.pid}-xyz.part", ".hidden"]
    for name in (*kept, left := f".a.pt.{gone.pid}-00112233.part"):
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == [tmp_path / left]
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    assert remove_leftovers(tmp_path / "nowhere") == []


def settled() -> None:
    """Wait until what the disk is to do beside is done."""
    for thread in threading.enumerate():
        if thread.name == "xpu-settle":
            thread.join()


def test_writing_on_a_disk_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("flushed"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("renamed"), replace(*paths)))
    AtomicPath(tmp_path / "a").write_bytes(b"new")
    settled()
    assert order == ["flushed", "renamed", "flushed"]  # the file, then the directory


def test_nothing_holds_a_file_that_was_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.pt"
    for text in ("one", "two", "three"):
        AtomicPath(target).write_text(text)
    settled()
    held = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            held.append(os.readlink(f"/proc/self/fd/{fd}"))
    assert not [path for path in held if str(tmp_path) in path]


def test_a_disk_that_is_nearly_full_gets_the_old_files_blocks_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.pt"
    target.write_bytes(b"old")
    started: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread.name))
    disk = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "fstatvfs", lambda fd: os.statvfs_result((*disk[:4], 0, *disk[5:])))
    AtomicPath(target).write_bytes(b"new")
    assert not started
    assert target.read_bytes() == b"new"


def test_a_file_that_may_not_be_replaced_while_it_is_open_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.pt"  # on a network share, for instance
    target.write_bytes(b"old")
    replace = os.replace

    def refuse_an_open_one(source: Any, destination: Any) -> None:
        held = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                held.append(os.readlink(f"/proc/self/fd/{fd}"))
        if str(target) in held:
            raise PermissionError(errno.EACCES, "it is open")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", refuse_an_open_one)
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.run)  # else it may still be open for a moment
    AtomicPath(target).write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_a_thread_that_cannot_start_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    target = tmp_path / "a.pt"
    target.write_bytes(b"old")
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    AtomicPath(target).write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert len(os.listdir("/proc/self/fd")) == before
