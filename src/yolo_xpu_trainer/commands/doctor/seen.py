"""What PyTorch sees, which outweighs what files say: a check may not know where to look."""

from __future__ import annotations

import re
from typing import Any

from ...diagnosis import Diagnosis, Machine, Probe, not_applicable

__all__ = ["is_compiled", "last_words", "no_xpu_seen", "of_import", "unless", "xpus"]

_LAST = 15


def xpus(machine: Machine) -> list[dict[str, Any]]:
    """Return the XPUs that PyTorch sees; none where it can't be asked."""
    probe = machine.probe("devices")
    return list(probe.value["devices"]) if probe.state == "ok" else []


def no_xpu_seen(machine: Machine) -> Diagnosis | None:
    """Return None where PyTorch sees no XPU; else that a check's files aren't where it looks for them."""
    found = xpus(machine)
    return not_applicable(f"not found, but PyTorch sees {len(found)} XPU{'s' * (len(found) > 1)}") if found else None


def is_compiled(machine: Machine) -> bool:
    """Whether PyTorch, once imported, said that it is built for XPUs."""
    probe = machine.probe("import")
    return probe.state == "ok" and bool(probe.value["compiled"])


def of_import(machine: Machine) -> tuple[int, ...]:
    """Return the first two numbers of the version of the PyTorch that was imported; none where it can't be."""
    probe = machine.probe("import")
    return tuple(int(n) for n in re.findall(r"\d+", probe.value["version"])[:2]) if probe.state == "ok" else ()


def unless(machine: Machine, name: str) -> Diagnosis | None:
    """Return None where a probe has an answer; else why it hasn't."""
    probe = machine.probe(name)
    if probe.state == "ok":
        return None
    ended = "the process " * (probe.state == "crashed")
    return not_applicable(f"can't tell: {ended}{probe.text}")


def last_words(probe: Probe) -> tuple[tuple[str, ...], ...]:
    """Return what a process printed before it crashed or was ended, as a table for a report."""
    lines = [line for line in probe.said.splitlines() if line.strip()][-_LAST:]
    return (("the last that the process printed",), *((line,) for line in lines)) if lines else ()
