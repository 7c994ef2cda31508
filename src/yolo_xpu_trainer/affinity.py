"""How `ZE_AFFINITY_MASK` names the XPUs of this process, so that another process is given one of them alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from . import devices
from .errors import DeviceError

__all__ = ["MASK", "SELECTOR", "give", "names", "names_by_environment"]

MASK, SELECTOR = "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"

_EVERY_GPU = re.compile(r"(level_zero|\*):(gpu|\*)")
_NUMBERED = re.compile(r"(level_zero|\*):(\d+(?:,\d+)*)")


def names_by_environment(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return what a mask calls each XPU that an environment leaves, without asking the driver.

    Level Zero hides devices by the mask first; the selector numbers what is left.

    Args:
        environment: The environment of a process.

    Returns:
        The names by index, or None where nothing is hidden, so that `xpu:i` is called `i`.

    Raises:
        DeviceError: The selector isn't one that a mask can replace.
    """
    mask, selector = (environment.get(name, "").replace(" ", "").lower() for name in (MASK, SELECTOR))
    left = tuple(name for name in mask.split(",") if name) or None
    if not selector or _EVERY_GPU.fullmatch(selector):
        return left
    numbered = _NUMBERED.fullmatch(selector)
    indices = [int(i) for i in numbered[2].split(",")] if numbered else []
    if not numbered or (left is not None and max(indices) >= len(left)):
        raise DeviceError(
            f"{SELECTOR}={environment[SELECTOR]!r} leaves open which XPUs {MASK} has to name, so that no process can "
            f"be given one XPU alone. Unset it, and hide XPUs with {MASK}, such as {MASK}=0,1.",
            requested=environment[SELECTOR],
            seen=devices.describe(),
        )
    return tuple(left[i] if left is not None else str(i) for i in indices)


def names() -> tuple[str, ...]:
    """Return what a mask calls each XPU of this process, by index.

    Raises:
        DeviceError: The variables that hide XPUs don't say it.
    """
    count = devices.count()
    found = names_by_environment(os.environ)
    if found is not None and len(found) != count:
        shown = ", ".join(f"{name}={os.environ[name]!r}" for name in (MASK, SELECTOR) if os.environ.get(name))
        raise DeviceError(
            f"{shown} names {len(found)} XPUs, but this process sees {devices.describe()}, so that no process can be "
            f"given one XPU alone. Name each XPU once in {MASK}, such as {MASK}=0,1.",
            requested=shown,
            seen=devices.describe(),
        )
    return tuple(map(str, range(count))) if found is None else found


def give(named: Sequence[str]) -> None:
    """Let this process see some of the machine's XPUs, before it has asked for any.

    Args:
        named: What a mask calls them.

    Raises:
        DeviceError: This process sees others all the same.
    """
    os.environ[MASK] = ",".join(named)
    if not _EVERY_GPU.fullmatch(os.environ.get(SELECTOR, "").replace(" ", "").lower()):
        os.environ.pop(SELECTOR, None)  # it would number what the mask leaves
    if devices.count() != len(named):
        raise DeviceError(
            f"This process was given {MASK}={os.environ[MASK]}, but sees {devices.describe()}: the mask came too late, "
            "or names no XPU of this machine. No training starts, because it would share an XPU with another one. "
            "Don't ask torch.xpu anything where a module is imported.",
            requested=os.environ[MASK],
            seen=devices.describe(),
        )
