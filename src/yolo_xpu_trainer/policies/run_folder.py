"""A run's folder is one run's: another one that would write into it, with `exist_ok` or `resume`, is refused."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RunFolderInUseError
from ..hookspecs import hookimpl
from ..run import Run
from ..run_folders import folder_of

__all__: list[str] = []

_NAME = ".in-use.json"


@hookimpl
def xpu_configure(trainer: Any) -> None:
    """Look at the folder before Ultralytics writes the run's arguments into it.

    Raises:
        RunFolderInUseError: Another process trains in it.
    """
    run: Run = trainer.xpu
    if run.is_worker:
        return
    folder = folder_of(trainer.args)
    if (process := _owner(folder)) is not None:
        raise RunFolderInUseError(
            f"Process {process} trains in {folder}, so a second run would mix its checkpoints and results with the "
            "first one's. Wait for it or end it, or give this run another folder: name=…, or no exist_ok=True.",
            folder=str(folder),
            process=process,
        )


@hookimpl
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Say in the folder whose it is, for the length of the run."""
    note = Path(trainer.save_dir) / _NAME
    if trainer.xpu.is_worker or _noted(note)[0] == os.getpid():  # of the parent, or of a run around this one
        yield
        return
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"process": os.getpid(), "started": _started(os.getpid())}), encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink()


def _owner(folder: Path) -> int | None:
    """Return the number of another process that trains in a folder, None where there is none."""
    process, started = _noted(folder / _NAME)
    if process in (0, os.getpid()) or _started(process) != started:
        return None
    return process


def _noted(note: Path) -> tuple[int, float]:
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
        return int(said["process"]), float(said["started"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0, 0.0


def _started(process: int) -> float:
    """Return when a process was started, -1 where there is none: numbers of processes are given again."""
    import psutil

    try:
        return float(psutil.Process(process).create_time())
    except psutil.Error:
        return -1.0
