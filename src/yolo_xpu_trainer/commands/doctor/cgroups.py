"""What a container's options, or the service manager's, leave of the machine to this process: cgroup version 2."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ...diagnosis import Machine

__all__ = ["memory", "processors"]

_ROOT = "/sys/fs/cgroup"


def _groups(machine: Machine) -> list[str]:
    """Return the directories of this process's group and of those around it: the tightest limit counts."""
    found = re.search(r"^0::(/.*)$", machine.read("/proc/self/cgroup"), re.MULTILINE)
    path = PurePosixPath(found[1]) if found else PurePosixPath("/")
    return [f"{_ROOT}{each}".rstrip("/") for each in (path, *path.parents)]


def processors(machine: Machine) -> float | None:
    """Return how many processors' time this process may take, such as 1.5; None where it isn't limited."""
    read = (machine.read(f"{group}/cpu.max") for group in _groups(machine))
    quotas = [re.fullmatch(r"(\d+) (\d+)", text) for text in read]
    return min((int(quota[1]) / int(quota[2]) for quota in quotas if quota and int(quota[2])), default=None)


def memory(machine: Machine) -> int | None:
    """Return how many bytes of memory the limits leave; None where it isn't limited.

    Pages of files that nobody used of late are counted as left: the kernel gives them up first.
    """
    left = []
    for group in _groups(machine):
        limit, used = (machine.read(f"{group}/memory.{name}") for name in ("max", "current"))
        if limit.isdecimal() and used.isdecimal():
            idle = re.search(r"^inactive_file (\d+)$", machine.read(f"{group}/memory.stat"), re.MULTILINE)
            left.append(int(limit) - int(used) + (int(idle[1]) if idle else 0))
    return max(min(left), 0) if left else None
