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
    for pause in (*_PAUSES, None):
        try:
            with _freed_beside(target) if pause == _PAUSES[0] else contextlib.nullcontext():
                os.replace(source, target)
        except PermissionError:  # on Windows, as long as somebody reads the target
            if pause is None:
                raise
            time.sleep(pause)
        else:
            break
    if os.name != "nt":  # where directories can't be opened
        with contextlib.suppress(OSError):
            directory = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)


@contextmanager
def _freed_beside(replaced: Path) -> Iterator[None]:
    """Let a thread wait until a replaced file's blocks are free, which takes as long as writing as many.

    Not where a file that is open can't be replaced, as on Windows, nor on a disk that needs the blocks at once.
    """
    held = None
    if os.name != "nt":
        with contextlib.suppress(OSError):  # there is none yet, or it can't be read
            held = os.open(replaced, os.O_RDONLY)
    try:
        yield
    finally:
        if held is not None and _is_nearly_full(held):
            os.close(held)
        elif held is not None:
            try:
                threading.Thread(target=os.close, args=(held,), name="xpu-free-blocks").start()
            except RuntimeError:  # a limit of threads, or the interpreter's end
                os.close(held)


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
