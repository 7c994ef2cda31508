"""The host: its memory, the shared memory that a data loader's workers need, disk space."""

from __future__ import annotations

import re
from pathlib import Path

from ...diagnosis import Diagnosis, DoctorCheck, Machine, not_applicable, ok, problem, warning
from . import cgroups
from .kernel import container

__all__ = ["CHECKS", "available_memory"]

_GIB = 1 << 30
_MEMORY, _SHARED, _DISK, _FULL = 2 * _GIB, _GIB, 5 * _GIB, _GIB // 4


def available_memory(machine: Machine) -> int | None:
    """Return how many bytes of the host's memory this process can have, None where it isn't told."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", machine.read("/proc/meminfo"), re.MULTILINE)
    left = cgroups.memory(machine)
    told = [int(found[1]) << 10 if found else None, left]
    return min((size for size in told if size is not None), default=None)


def _host_memory(machine: Machine) -> Diagnosis:
    available = available_memory(machine)
    if available is None:
        return not_applicable("can't tell: there is no /proc/meminfo")
    if available < _MEMORY:
        return warning(
            f"{available / _GIB:.1f} GiB of the host's memory are free",
            advice="Close other programs, or train with workers=1 and without cache=ram. An integrated GPU's memory is "
            "the host's.",
        )
    return ok(f"{available / _GIB:.1f} GiB free")


def _shared_memory(machine: Machine) -> Diagnosis:
    path = machine.path("/dev/shm")
    if machine.system != "Linux" or not path.exists():
        return not_applicable("there is no /dev/shm")
    total, free = machine.usage(path)
    if min(total, free) >= _SHARED:
        return ok(f"{free / _GIB:.1f} GiB free in /dev/shm")
    seen = f"/dev/shm has {free >> 20} MiB free: data loaders with workers end with a bus error where it is full"
    if container(machine):
        return warning(
            seen, "docker run --shm-size 8g …", advice="Start the container with that option, or train with workers=0."
        )
    return warning(seen, "sudo mount -o remount,size=8G /dev/shm", advice="Or train with workers=0.")


def _runs(machine: Machine) -> Path:
    """Return where Ultralytics writes runs, or the directory nearest above it that is there.

    Where Python's environment is inside a clone, that is inside the clone, too, whatever the working directory is.
    """
    probe = machine.probe("ultralytics")
    runs = str(probe.value["runs"]) if probe.state == "ok" else ""
    path = machine.folder / runs  # by itself where it is absolute
    return next((each for each in (path, *path.parents) if each.exists()), machine.folder)


def _disk(machine: Machine) -> Diagnosis:
    try:
        _, free = machine.usage(_runs(machine))
    except OSError as error:
        return not_applicable(f"can't tell: {error.strerror}")
    if free < _DISK:
        said = problem if free < _FULL else warning
        return said(
            f"{free / _GIB:.1f} GiB are free where runs are written",
            advice="Free some, or name another disk by project=…: checkpoints are written in every epoch. `yolo "
            "settings` names the folder as runs_dir.",
        )
    return ok(f"{free / _GIB:.0f} GiB free where runs are written")


CHECKS = (
    DoctorCheck("host-memory", "the host's free memory", _host_memory),
    DoctorCheck("shared-memory", "/dev/shm, which data loaders' workers need", _shared_memory),
    DoctorCheck("disk", "free space where runs are written", _disk, ("ultralytics",)),
)
"""The checks."""
