"""How this Python's packages are installed: the checks say `python -m pip`, which isn't everywhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from ...diagnosis import Diagnosis, Machine

__all__ = ["for_this_python"]

_PIP = re.compile(r"python -m pip (.*)")


def for_this_python(machine: Machine, said: Diagnosis) -> Diagnosis:
    """Return a diagnosis whose commands for pip work with the machine's Python.

    Args:
        machine: The machine.
        said: The diagnosis, whose commands begin with `python -m pip`.
    """
    if not any(_PIP.match(command) for command in said.fix):
        return said
    if machine.distribution("pip") is None:
        fix = tuple(_of_uv(found[1]) if (found := _PIP.match(command)) else command for command in said.fix)
        return _advised(replace(said, fix=fix), f"Without uv: `{_name(machine)} -m ensurepip`, then pip's commands.")
    fix = tuple(re.sub("^python(?= -m pip )", _name(machine), command) for command in said.fix)
    if _is_managed(machine):
        return _advised(
            replace(said, fix=fix),
            f"The system's Python refuses pip's changes: `{_name(machine)} -m venv .venv`, then "
            "`. .venv/bin/activate`, and install everything there.",
        )
    return replace(said, fix=fix)


def _advised(said: Diagnosis, advice: str) -> Diagnosis:
    return replace(said, advice=f"{said.advice} {advice}".strip())


def _of_uv(arguments: str) -> str:
    """Return uv's command of pip's arguments; it asks nothing before it uninstalls."""
    if arguments == "cache purge":
        return "uv cache clean"
    return "uv pip " + arguments.replace("uninstall -y ", "uninstall ")


def _name(machine: Machine) -> str:
    """Return what Python is called in a shell; "python" where its program is another's, as in a frozen one."""
    path = PureWindowsPath(machine.executable) if machine.is_windows else PurePosixPath(machine.executable)
    name = path.name.removesuffix(".exe")
    return name if re.fullmatch(r"python[\d.]*", name) else "python"


def _is_managed(machine: Machine) -> bool:
    """Whether it is the system's Python, whose packages a package manager of the system has (PEP 668)."""
    library = f"python{machine.python[0]}.{machine.python[1]}"
    marked = any(machine.path(f"/usr/{lib}/{library}/EXTERNALLY-MANAGED").exists() for lib in ("lib", "lib64"))
    return marked and PurePosixPath(machine.executable).parent == PurePosixPath("/usr/bin")
