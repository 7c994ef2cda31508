"""The memory of the XPUs: how much a training can have, a large allocation, copies from pinned memory."""

from __future__ import annotations

from ...diagnosis import Diagnosis, DoctorCheck, Machine, not_applicable, ok, warning
from .seen import of_import, unless, xpus

__all__ = ["CHECKS"]

_LITTLE = 2 << 30
_RELAXED = "UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS"


def _available(machine: Machine) -> Diagnosis:
    if said := unless(machine, "memory"):
        return said
    rows = machine.probe("memory").value
    for row in rows:
        if row["available"] < _LITTLE:
            return warning(
                f"{row['shown']} has {row['available'] / 2**30:.1f} GiB to give ({row['basis']})",
                advice="Close other programs that use the GPU, and train with batch=-1, which picks what fits.",
            )
    return ok(", ".join(f"{row['shown']}: {row['available'] / 2**30:.1f} GiB" for row in rows))


def _large(machine: Machine) -> Diagnosis:
    if said := unless(machine, "memory"):
        return said
    devices = xpus(machine)
    rows = [row for row in machine.probe("memory").value if "large" in row]
    if not rows:
        return not_applicable("no XPU has 5 GiB to spare for a trial")
    for row in rows:
        limited = next((d for d in devices if d["shown"] == row["shown"] and d["limit"]), None)
        if row["large"] and limited:
            return ok(
                f"{row['shown']} refuses 4 GiB at once, as its kind does; batch=-1 stays below. {limited['limit_text']}"
            )
        if row["large"]:
            if (release := of_import(machine)) and release < (2, 8):
                return warning(
                    f"{row['shown']} has the room, but refused 4 GiB at once: {row['large']}",
                    advice="A smaller batch does without. Don't lift the limit: kernels of PyTorch before 2.8 can't "
                    "address more, and results may be wrong.",
                )
            lift = f"set {_RELAXED}=1" if machine.is_windows else f"export {_RELAXED}=1"
            return warning(
                f"{row['shown']} has the room, but refused 4 GiB at once: {row['large']}",
                lift,
                advice="It must be set before Python starts. A smaller batch does without.",
            )
    return ok("4 GiB at once can be had")


def _copies(machine: Machine) -> Diagnosis:
    if said := unless(machine, "memory"):
        return said
    rows = machine.probe("memory").value
    for row in rows:
        if error := row.get("copy_error"):
            return warning(
                f"{row['shown']}: copying from pinned memory failed: {error}", advice="Train with xpu_pin_memory=False."
            )
        if not row["intact"]:
            return warning(
                f"{row['shown']}: what was copied to it came back changed",
                advice="Seen on Arc A under the kernel driver xe (llama.cpp#27063). Train with xpu_prefetch=0. "
                "`yolo-xpu doctor --numerics` tells whether results are wrong, too.",
            )
    shown = ", ".join(f"{row['bandwidth'] / 1e9:.1f} GB/s to {row['shown']}" for row in rows)
    return ok(f"{shown}, from pinned memory, 64 MiB at a time")


CHECKS = (
    DoctorCheck("memory", "the memory that a training can have", _available, ("memory",)),
    DoctorCheck("large-allocation", "4 GiB at once", _large, ("memory",)),
    DoctorCheck("copies", "copies from pinned memory, their speed and contents", _copies, ("memory",)),
)
"""The checks."""
