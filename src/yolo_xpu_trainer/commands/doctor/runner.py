"""The checks in their order, and what comes out of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ...diagnosis import Diagnosis, DoctorCheck, Machine, Verdict, not_applicable
from . import (
    build,
    compiling,
    conda,
    devices,
    environment,
    host,
    import_error,
    kernel,
    memory,
    numerics,
    packages,
    several,
    user_driver,
    workers,
)
from .installer import for_this_python
from .probes import Probes

__all__ = ["CHECKS", "Result", "examine", "exit_status", "others"]

CHECKS: tuple[DoctorCheck, ...] = (
    *kernel.CHECKS,
    *user_driver.CHECKS,
    *conda.CHECKS,
    *build.CHECKS,
    *import_error.CHECKS,
    *environment.CHECKS,
    *devices.CHECKS,
    *memory.CHECKS,
    *numerics.CHECKS,
    *several.CHECKS,
    *packages.CHECKS,
    *compiling.CHECKS,
    *host.CHECKS,
    *workers.CHECKS,
)
"""Every built-in check, in the order in which what it looks at is installed: the first problem is where to begin."""

_OTHERS = "other-checks"
_GROUP = "yolo_xpu_trainer"  # of entry points; `hookspecs`, which says so, imports PyTorch


@dataclass(frozen=True)
class Result:
    """What came out of a check."""

    check: DoctorCheck
    diagnosis: Diagnosis

    @property
    def verdict(self) -> Verdict:
        """The diagnosis' verdict."""
        return self.diagnosis.verdict


def examine(machine: Machine, wanted: Iterable[DoctorCheck], *, with_others: bool = True) -> Iterator[Result]:
    """Make checks on a machine, and yield what comes out of each.

    Args:
        machine: The machine, whose probes aren't made yet.
        wanted: The checks.
        with_others: Whether other packages' checks follow.
    """
    chosen = tuple(wanted)
    with_others = with_others and _has_plugins(machine)
    names = {name for check in chosen for name in check.probes}
    asked = replace(machine, probes=Probes(machine, names | ({_OTHERS} if with_others else set())))
    for check in chosen:
        try:
            yield Result(check, for_this_python(asked, check.examine(asked)))
        except Exception as error:  # a file tree, or an answer, as nobody foresaw it
            yield Result(check, not_applicable(f"the check itself failed: {type(error).__name__}: {error}"))
    if with_others:
        yield from others(asked)


def _has_plugins(machine: Machine) -> bool:
    """Whether any installed package names a plugin of ours; else no process is begun to ask them."""
    return any(entry.group == _GROUP for package in machine.distributions() for entry in package.entry_points)


def others(machine: Machine) -> Iterator[Result]:
    """Yield what came out of the checks that other packages add."""
    probe = machine.probe(_OTHERS)
    if probe.state in ("crashed", "hung"):
        failed = Diagnosis(
            Verdict.WARNING,
            f"a check of another package ended its process ({probe.text})",
            advice="YOLO_XPU_PLUGINS='' leaves other packages' plugins out.",
        )
        yield Result(_named("plugin-checks", "checks of other packages"), failed)
    for row in probe.value if probe.state == "ok" else ():
        said = Diagnosis(
            Verdict(row["verdict"]),
            row["seen"],
            tuple(row.get("fix", ())),
            row.get("advice", ""),
            tuple(tuple(cells) for cells in row.get("table", ())),
        )
        yield Result(_named(row["name"], row["what"]), said)


def _named(name: str, what: str) -> DoctorCheck:
    return DoctorCheck(name, what, lambda machine: not_applicable("it was made in a child process"))


def exit_status(results: Iterable[Result]) -> int:
    """Return 0 where a training works, 1 where it works with warnings, 2 where it doesn't."""
    verdicts = {result.verdict for result in results}
    return 2 if Verdict.PROBLEM in verdicts else 1 if Verdict.WARNING in verdicts else 0
