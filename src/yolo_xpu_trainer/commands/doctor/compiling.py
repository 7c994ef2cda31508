"""Triton and a C++ compiler, which `compile=True` needs and nothing else."""

from __future__ import annotations

import shutil

from ...diagnosis import Diagnosis, DoctorCheck, Machine, not_applicable, ok

__all__ = ["CHECKS"]

_COMPILERS = ("g++", "clang++", "c++", "icpx")


def _compiler(machine: Machine) -> Diagnosis:
    names = ("cl",) if machine.is_windows else _COMPILERS
    found = machine.environ.get("CXX") or next(
        (name for name in names if shutil.which(name, path=machine.environ.get("PATH", ""))), ""
    )
    probe = machine.probe("triton")
    what_for = "only compile=True needs it"
    if probe.state != "ok":
        return not_applicable(f"Triton: {probe.text}; {what_for}")
    if "intel" not in probe.value["backends"]:
        made_for = ", ".join(probe.value["backends"]) or "no device"
        return not_applicable(f"Triton {probe.value['version']} is made for {made_for}; {what_for}")
    if not found:
        how = (
            "run Python from the prompt of Visual Studio's C++ tools" if machine.is_windows else "sudo apt install g++"
        )
        return not_applicable(f"Triton {probe.value['version']}, but no C++ compiler; {what_for}: {how}")
    return ok(f"Triton {probe.value['version']}, {found}")


CHECKS = (DoctorCheck("compiler", "Triton and a C++ compiler, for compile=True", _compiler, ("triton",)),)
"""The check."""
