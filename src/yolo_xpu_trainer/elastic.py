"""A run that a launcher starts has one folder, and goes on in it from `last.pt` where it is started again."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import socket
from pathlib import Path
from typing import Any

import torch

from .errors import UsageError
from .files import AtomicPath
from .process_group import Group
from .ranks import Launch
from .run_folders import folder_of

__all__ = ["interrupted", "leave_note", "remove_note", "settle_folder"]

_LOGGER = logging.getLogger("ultralytics")
_NOTE = ".launched.json"
_trainings = 0  # of this process, up to now: the script does the same ones again where it is started again


def settle_folder(args: Any, group: Group) -> Path | None:
    """Give every rank of a run the folder that rank 0 takes, or that of the run that goes on.

    Its name is rank 0's; where it is, each machine's own `project` and settings say, because machines need not share a
    disk.

    Args:
        args: The arguments of the run, whose `save_dir` is set.
        group: Its processes.

    Returns:
        The `last.pt` to go on from, which is then on every machine, or None for a new run.

    Raises:
        UsageError: Every epoch of the run is trained.
    """
    global _trainings
    _trainings += 1
    wanted = copy.copy(args)
    wanted.exist_ok = True
    base = folder_of(wanted)
    found = interrupted(base, group.launch)
    states = group.gather(None if found is None else (found.name, _epoch(found / "weights" / "last.pt")))
    there = [rank for rank, state in enumerate(states) if state is not None]
    if there:
        source = max(there, key=lambda rank: (states[rank][1] is not None, states[rank][1] or 0, -rank))
        name, epoch = states[source]
    else:
        name = group.agree(folder_of(args).name)
        epoch = None
    args.save_dir = str(base.with_name(name))
    last = Path(args.save_dir) / "weights" / "last.pt"
    if epoch is None:
        return None
    if epoch == -1:
        raise UsageError(
            f"The run in {args.save_dir} has trained every epoch and was ended in its final evaluation; there is "
            f"nothing to go on with. `yolo val model={last.with_name('best.pt')}` evaluates it."
        )
    group.share(last, source)
    if group.launch.rank == 0:
        _LOGGER.info(f"XPU: going on with {last}, because the run was started again")
    return last


def interrupted(base: Path, launch: Launch) -> Path | None:
    """Return the folder of the run that these processes were started again for, None where they are the first.

    Args:
        base: The folder that a run of this name would have if there were no other.
        launch: Which process this is.
    """
    me = _me(launch)
    if me is None or not base.parent.is_dir():
        return None
    name = re.compile(re.escape(base.name) + r"-?\d*")  # Ultralytics puts a number behind a name that is taken
    folders = [folder for folder in base.parent.iterdir() if name.fullmatch(folder.name)]
    for folder in sorted(folders, key=lambda folder: -_changed(folder / _NOTE)):
        try:
            said = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if said.get("training") != _trainings:  # an earlier one of this process, or another one of the script
            continue
        if said.get("launcher") == me["launcher"]:
            return folder
        if launch.restarts and launch.run_id and said.get("run") == launch.run_id:
            return folder
    return None


def leave_note(folder: Path, launch: Launch) -> None:
    """Say in a folder whose run it is, for processes that go on with it."""
    me = _me(launch)
    if me is not None:
        folder.mkdir(parents=True, exist_ok=True)
        AtomicPath(folder / _NOTE).write_text(json.dumps(me), encoding="utf-8")


def remove_note(folder: Path) -> None:
    """Say that a run has come to its end."""
    (folder / _NOTE).unlink(missing_ok=True)


def _me(launch: Launch) -> dict[str, Any] | None:
    """Return what tells this launch apart: the run's id, the launcher, which may start it again, and which training."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    import psutil

    parent = os.getppid()
    try:
        started = psutil.Process(parent).create_time()
    except psutil.Error:
        started = 0.0
    return {"run": launch.run_id, "launcher": [socket.gethostname(), parent, started], "training": _trainings}


def _changed(note: Path) -> float:
    try:
        return note.stat().st_mtime
    except OSError:
        return 0.0


def _epoch(last: Path) -> int | None:
    """Return the last epoch of a checkpoint, -1 for a finished run's, None where there is none to go on from."""
    try:
        saved = torch.load(last, map_location="cpu", weights_only=False)
        epoch = int(saved["epoch"])
        return -1 if epoch + 1 >= int(saved["train_args"]["epochs"]) else epoch
    except Exception:  # of whatever type a damaged file, or its classes, raise
        return None
