"""Whether a device computes what the CPU computes: checks that policies declare, and what came out of them.

A `Check` compares one operator on a device with the CPU. What came out is kept for the process and on disk, by device,
driver and PyTorch, so that each is made once. Who leans on an operator asks `avoids`, or `finding`, before it does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..devices import DeviceInfo, empty_cache, info
from ..options import Option
from . import results
from .check import Check, Finding
from .comparing import Given, as_usual, compared

if TYPE_CHECKING:
    from ..run import Run

__all__ = ["ANOTHER_PRECISION", "SELF_CHECK", "Check", "Finding", "Given", "avoids", "compared", "examine", "finding"]

ANOTHER_PRECISION = "Training in another precision"
"""What a check says that is done where it fails, if a precision is wrong as a whole."""

_LOGGER = logging.getLogger("ultralytics")

SELF_CHECK: Option[Any] = Option(
    "self_check",
    True,
    "the operators that a training leans on are compared with the CPU's before it, once for a device, driver and "
    "PyTorch; `full` compares all of them anew, `False` none",
    words=("full",),
)


def examine(
    checks: Iterable[Check], device: DeviceInfo, *, anew: bool = False, begin: Callable[[int], None] | None = None
) -> Iterator[Finding]:
    """Yield what comes out of checks on a device, each as soon as it is known.

    Args:
        checks: The checks.
        device: The device.
        anew: Whether all are made; else only those of which nothing is known.
        begin: Called with the number of checks that are about to be made, if there are any.

    Raises:
        torch.OutOfMemoryError: The device has no memory for them.
        RuntimeError: The device is lost.
    """
    wanted = list(checks)
    known = {} if anew else results.known(device)
    missing = [check for check in wanted if check.key not in known]
    if missing and begin is not None:
        begin(len(missing))
    made: dict[str, Finding] = {}
    try:
        for check in wanted:
            if check.key not in known and check.key not in made:
                with as_usual():
                    made[check.key] = check.made_on(device.device)
            yield made[check.key] if check.key in made else known[check.key].of(check)
    finally:
        if made:
            results.keep(device, made)
            empty_cache(device.index)  # a run on little memory counts on what the checks took


def finding(check: Check, device: DeviceInfo) -> Finding:
    """Return what comes out of a check on a device, which is made where nothing is known of it."""
    return next(examine([check], device))


def avoids(run: Run, *checks: Check, needed: bool = False) -> bool:
    """Whether a run does without what checks are of, because a device of it fails one; says so, once a run.

    Args:
        run: The run.
        checks: What would be used; `Check.instead` says what the run does then.
        needed: Whether it is asked for with `xpu_self_check=False`, too: the operator may be missing.
    """
    if run.options[SELF_CHECK] is False and not needed:
        return False
    for check in checks:
        for device in map(info, run.indices):
            if run.is_worker and device.index != run.device.index:  # of which its parent found out; all do the same
                known = results.known(device).get(check.key)
                found = known.of(check) if known else None
            else:
                found = finding(check, device)
            if found is not None and not found.right:
                report = _LOGGER.info if found.error else _LOGGER.warning
                report(f"XPU: {check.instead}, because {found} on {device}.")
                return True
    return False
