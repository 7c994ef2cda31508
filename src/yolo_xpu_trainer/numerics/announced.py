"""What a run compares before it begins, the precisions first: announced as it begins, and told of as a whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..devices import DeviceInfo
from .check import Check, Finding
from .examining import examine
from .results import key_of

__all__ = ["announced", "tell"]

_LOGGER = logging.getLogger("ultralytics")


@dataclass
class _Tally:
    """What was compared on a device since the user was told of it last."""

    made: dict[str, Finding] = field(default_factory=dict)
    seconds: float = 0.0


_tallies: dict[tuple[str, int], _Tally] = {}  # two GPUs of a kind have one key


def announced(checks: Iterable[Check], device: DeviceInfo, *, anew: bool = False) -> Iterator[Finding]:
    """Yield what comes out of checks on a device, as `examine` does, and say so before the first that is made.

    Kernels may be compiled at first use, which takes long. `tell` says how long it took.

    Args:
        checks: The checks.
        device: The device.
        anew: Whether all are made that weren't made since `tell` was called; else only those of which nothing is known.
    """
    tally = _tallies.setdefault((key_of(device), device.index), _Tally())

    def begin(check: Check) -> None:
        if not tally.made:
            _LOGGER.info(f"XPU: comparing operators of {device} with the CPU's, once for this driver and PyTorch…")

    def end(finding: Finding, seconds: float) -> None:
        assert finding.check is not None
        tally.made[finding.check.key] = finding
        tally.seconds += seconds

    yield from examine(checks, device, anew=anew, but=tuple(tally.made), making=begin, made=end)


def tell(device: DeviceInfo) -> bool:
    """Say how many operators of a device were compared since this was called last, how fast, and how many are wrong.

    Returns:
        Whether there were any.
    """
    tally = _tallies.pop((key_of(device), device.index), _Tally())
    if not tally.made:
        return False
    wrong = sum(not found.right for found in tally.made.values())
    _LOGGER.info(
        f"XPU: {len(tally.made)} operators compared in {tally.seconds:.1f} s, "
        f"{f'{wrong} wrong' if wrong else 'all right'}; `yolo-xpu doctor --numerics` lists them."
    )
    return True
