"""Make checks, and keep what comes out of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator

from ..devices import DeviceInfo, empty_cache
from . import results
from .check import Check, Finding
from .comparing import as_usual

__all__ = ["examine"]


def _nothing(*args: object) -> None:
    pass


def examine(
    checks: Iterable[Check],
    device: DeviceInfo,
    *,
    anew: bool = False,
    but: Collection[str] = (),
    making: Callable[[Check], None] = _nothing,
    made: Callable[[Finding, float], None] = _nothing,
) -> Iterator[Finding]:
    """Yield what comes out of checks on a device, each as soon as it is known.

    Args:
        checks: The checks.
        device: The device.
        anew: Whether all are made; else only those of which nothing is known.
        but: Keys of checks of which what is known counts all the same.
        making: Called with each check that is about to be made.
        made: Called with what came out of it, and after how many seconds.

    Raises:
        torch.OutOfMemoryError: The device has no memory for them.
        RuntimeError: The device is lost.
    """
    known = {key: found for key, found in results.known(device).items() if not anew or key in but}
    found: dict[str, Finding] = {}
    try:
        for check in checks:
            if check.key not in known and check.key not in found:
                making(check)
                began = time.perf_counter()
                with as_usual():
                    found[check.key] = check.made_on(device.device)
                made(found[check.key], time.perf_counter() - began)
            yield found[check.key] if check.key in found else known[check.key].of(check)
    finally:
        if found:
            results.keep(device, found)
            empty_cache(device.index)  # a run on little memory counts on what the checks took
