"""Files that are at every instant the old or the new one, whole: written beside, flushed to the disk, renamed.

As PyTorch's distributed checkpoints (`torch/distributed/checkpoint/filesystem.py`) and Lightning's `atomic_save` do.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["HEARTBEAT_VARIABLE", "AtomicPath", "quoted", "remove_leftovers", "replacing"]

HEARTBEAT_VARIABLE = "YOLO_XPU_HEARTBEAT"
"""Names the file in which a supervised run says that it is alive."""

_NAME = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.part")
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds; how long a reader may hold a file on Windows


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside a file, for what takes the file's place when the block ends.

    Nothing is replaced where the block raises, or writes nothing.

    Args:
        target: The file, which may not exist yet. A link stays, and what it points to is replaced.

    Raises:
        OSError: It can't be written, or on Windows somebody has held it for 3 s.
    """
    there = Path(os.path.realpath(target))
    beside = there.with_name(f".{there.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield beside
        if beside.exists():
            with contextlib.suppress(OSError):  # a new file has the mode that the process gives
                shutil.copymode(there, beside)
            _flush(beside)
            _rename(beside, there)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _flush(path: Path) -> None:
    """Wait until a file's contents are on the disk; else a rename could get there before them."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _rename(source: Path, target: Path) -> None:
    """Let a file take another's place, and what that leaves to the disk be done beside the run."""
    held = _opened(target)
    try:
        for pause in (*_PAUSES, None):
            try:
                os.replace(source, target)
                break
            except PermissionError:  # on Windows, as long as somebody reads the target
                if pause is None:
                    raise
                _closed(held)  # a network share may refuse it while that is open
                held = None
                time.sleep(pause)
    except BaseException:
        _closed(held)
        raise
    _settle(_opened(target.parent), held)


def _opened(path: Path) -> int | None:
    """Return a descriptor of a file or a directory; None where there is none, or where that gets in the way.

    Windows opens no directory, and replaces no file that is open.
    """
    if os.name == "nt":
        return None
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDONLY)
    return None


def _closed(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _settle(directory: int | None, replaced: int | None) -> None:
    """Write a directory's new entry to the disk, and free a replaced file's blocks: as much work as writing them.

    Either file is whole whether or not that is done, so a thread waits for it; but not on a disk that needs the blocks
    at once.
    """

    def settle() -> None:
        _closed(replaced)
        if directory is not None:
            with contextlib.suppress(OSError):  # of a file system that can't
                os.fsync(directory)
        _closed(directory)

    if replaced is not None and _is_nearly_full(replaced):
        settle()
        return
    try:
        threading.Thread(target=settle, name="xpu-settle").start()
    except RuntimeError:  # a limit of threads, or the interpreter's end
        settle()


def _is_nearly_full(file: int) -> bool:
    """Whether the disk that a file is on may not have room for the next ones."""
    try:
        disk = os.fstatvfs(file)
        return disk.f_bavail * disk.f_frsize < 4 * os.fstat(file).st_size
    except OSError:
        return True


def remove_leftovers(directory: Path) -> list[Path]:
    """Remove what processes that are gone have left beside files of a directory.

    Returns:
        What was removed.
    """
    import psutil

    removed = []
    for path in directory.glob(".*.part") if directory.is_dir() else ():
        name = _NAME.fullmatch(path.name)
        if name and not psutil.pid_exists(int(name[1])):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def quoted(argument: str) -> str:
    """Write an argument as the command line of this system takes it, whatever characters a path in it has."""
    return subprocess.list2cmdline([argument]) if os.name == "nt" else shlex.quote(argument)


class AtomicPath(type(Path())):  # type: ignore[misc]
    """A path whose `write_bytes` and `write_text` replace the file; so do those of paths that are made from it."""

    def __reduce__(self) -> Any:
        """Pickle as a plain path: what a checkpoint holds is read without this package, too."""
        return Path, (str(self),)

    def write_bytes(self, data: Any) -> int:
        """Replace the file by one with these bytes."""
        with replacing(self) as beside:
            return beside.write_bytes(data)

    def write_text(self, data: str, *args: Any, **kwargs: Any) -> int:
        """Replace the file by one with this text."""
        with replacing(self) as beside:
            return beside.write_text(data, *args, **kwargs)
