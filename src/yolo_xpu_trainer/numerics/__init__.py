"""Whether a device computes what the CPU computes: checks that policies declare, and what came out of them.

A `Check` compares one operator on a device with the CPU. What came out is kept for the process and on disk, by device,
driver and PyTorch, so that each is made once. Who leans on an operator asks `avoids`, or `finding`, before it does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..devices import DeviceInfo, info
from ..options import Option
from . import results
from .announced import announced, tell
from .check import Check, Finding
from .comparing import Given, compared
from .examining import examine
from .table import table

if TYPE_CHECKING:
    from ..run import Run

__all__ = [
    "ANOTHER_PRECISION",
    "SELF_CHECK",
    "Check",
    "Finding",
    "Given",
    "announced",
    "avoids",
    "compared",
    "examine",
    "finding",
    "table",
    "tell",
]

ANOTHER_PRECISION = "Training in another precision"
"""What a check says that is done where it fails, if a precision is wrong as a whole."""

_LOGGER = logging.getLogger("ultralytics")

SELF_CHECK: Option[Any] = Option(
    "self_check",
    True,
    "the operators that a training leans on are compared with the CPU's before it, once for a device, driver and "
    "PyTorch; `full` compares all of them anew and prints a table, `False` none",
    words=("full",),
)


def finding(check: Check, device: DeviceInfo) -> Finding:
    """Return what comes out of a check on a device, which is made where nothing is known of it."""
    return next(examine([check], device))


def avoids(run: Run, *checks: Check, needed: bool = False, together: bool = False) -> bool:
    """Whether a run does without what checks are of, because a device of it fails one; says so, once a run.

    Args:
        run: The run.
        checks: What would be used; `Check.instead` says what the run does then.
        needed: Whether it is asked for with `xpu_self_check=False`, too: the operator may be missing.
        together: Whether processes that a launcher started must do the same, as what they compute would drift apart
            otherwise. Then all of them have to call this.
    """
    why = _why_not(run, checks) if needed or run.options[SELF_CHECK] is not False else None
    if together and run.group is not None:
        why = next(filter(None, run.group.gather(why)), None)
    if why is None:
        return False
    text, is_missing = why
    report = _LOGGER.info if is_missing else _LOGGER.warning
    report(f"XPU: {text}.")
    return True


def _why_not(run: Run, checks: Iterable[Check]) -> tuple[str, bool] | None:
    """Return what is done instead, and why, and whether that is an error; None where all is right."""
    for check in checks:
        for device in map(info, run.indices):
            if run.is_worker and device.index != run.device.index:  # of which its parent found out; all do the same
                known = results.known(device).get(check.key)
                found = known.of(check) if known else None
            else:
                found = finding(check, device)
            if found is not None and not found.right:
                return f"{check.instead}, because {found} on {device}", bool(found.error)
    return None
