"""What `yolo-xpu doctor` looks at and says: checks, their verdicts, and the machine that they are asked of.

Nothing here imports PyTorch, whose import may be what fails, hangs or crashes. A check is a function of a `Machine`,
through which it sees files, variables and child processes, so that a faked one can stand for any set-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from .machine import Machine, Probe

__all__ = ["Diagnosis", "DoctorCheck", "Machine", "Probe", "Verdict", "not_applicable", "ok", "problem", "warning"]


class Verdict(str, Enum):
    """What a check says of a machine: it trains, it trains with a warning, it doesn't train, or the check is moot."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Diagnosis:
    """What a check saw, and what to do about it.

    Attributes:
        verdict: Whether a training works like this.
        seen: What was found, as a sentence without its full stop.
        fix: The commands that fix it, in their order, for the shell of the machine. `yolo-xpu doctor --fix` prints
            them; nothing runs them.
        advice: What to do where a command doesn't do it, with the page that tells more; sentences.
        table: More of what was found, for `--verbose`, `--check` and a report: a row of headings, then rows.
    """

    verdict: Verdict
    seen: str
    fix: tuple[str, ...] = ()
    advice: str = ""
    table: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class DoctorCheck:
    """One named check of `yolo-xpu doctor`.

    Attributes:
        name: Lower-case words with hyphens, such as "torch-build": what users give to `--check`.
        what: What it looks at, in a few words, for `--list`.
        examine: Looks at a machine.
        probes: The built-in probes of PyTorch whose answers it reads; a plugin's check needs none, because it is run in
            a child process in which PyTorch is imported already.
    """

    name: str
    what: str
    examine: Callable[[Machine], Diagnosis]
    probes: tuple[str, ...] = ()


def ok(seen: str, table: tuple[tuple[str, ...], ...] = ()) -> Diagnosis:
    """Return that all is well."""
    return Diagnosis(Verdict.OK, seen, table=table)


def not_applicable(seen: str, advice: str = "") -> Diagnosis:
    """Return that there is nothing to say, and why."""
    return Diagnosis(Verdict.NOT_APPLICABLE, seen, advice=advice)


def warning(seen: str, *fix: str, advice: str = "", table: tuple[tuple[str, ...], ...] = ()) -> Diagnosis:
    """Return what a training works with, but not well, and the commands that fix it."""
    return Diagnosis(Verdict.WARNING, seen, fix, advice, table)


def problem(seen: str, *fix: str, advice: str = "", table: tuple[tuple[str, ...], ...] = ()) -> Diagnosis:
    """Return what no training works with, and the commands that fix it."""
    return Diagnosis(Verdict.PROBLEM, seen, fix, advice, table)
