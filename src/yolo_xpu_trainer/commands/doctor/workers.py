"""The data loader's workers: whether there are processors, memory and open files for as many as are started."""

from __future__ import annotations

from ...diagnosis import Diagnosis, DoctorCheck, Machine, ok, warning
from . import cgroups
from .host import available_memory

__all__ = ["CHECKS"]

_DEFAULT = 8  # of Ultralytics' `workers`, of which it starts no more than the machine has processors
_GIB = 1 << 30
_FOR_THE_REST = _GIB

# `workers=1` is a process that loads for the training and two for the validation. Measured on Linux with images of 640
# pixels in batches of 16: each takes 100 MB, has 80 MB of batches waiting, and costs its parent 7 open files.
_MEMORY_OF_ONE = _GIB // 2
_FILES_OF_ONE, _FILES_OF_THE_REST = 20, 128


def _usable(machine: Machine) -> int:
    """Return how many processors this process may use."""
    quota = cgroups.processors(machine)
    return max(min(machine.usable_processors, int(quota) if quota else machine.usable_processors), 1)


def _workers(machine: Machine) -> Diagnosis:
    started = min(_DEFAULT, machine.processors)
    usable, available = _usable(machine), available_memory(machine)
    room = {f"{usable} of {machine.processors} processors may be used": usable}
    if available is not None:
        room[f"{available / _GIB:.1f} GiB of memory are free"] = (available - _FOR_THE_REST) // _MEMORY_OF_ONE
    if machine.open_files is not None:
        files = machine.open_files
        room[f"{files} files may be open at once (`ulimit -n`)"] = (files - _FILES_OF_THE_REST) // _FILES_OF_ONE
    short = [seen for seen, enough in room.items() if enough < started]
    if not short:
        return ok(f"{started} workers: {', '.join(room)}")
    advice = f"Train with workers={max(min(room.values()), 1)}."
    if any("ulimit" in seen for seen in short):
        advice += " Or raise the limit of open files in the shell that trains: `ulimit -n 4096`."
    return warning(
        f"Ultralytics starts {started} workers by default, and twice as many to validate, but {', and '.join(short)}",
        advice=advice,
    )


CHECKS = (DoctorCheck("loader-workers", "processors, memory and open files for the data loader's workers", _workers),)
"""The checks."""
