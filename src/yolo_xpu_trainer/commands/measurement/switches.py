"""The values of `xpu_*` options with which the same model is trained, and which may be faster than the default."""

from __future__ import annotations

import os

from ...devices import DeviceInfo
from ...plugins import declared_options
from .cases import Switch

__all__ = ["switches_of_options"]


def switches_of_options(device: DeviceInfo, every: bool = False) -> tuple[list[Switch], list[str]]:
    """Find the values that options declare as worth trying, other than the default on a device.

    Args:
        device: The device.
        every: Whether those are wanted, too, that autotune leaves out.

    Returns:
        The switches, and a note on each option that can't be tried.
    """
    found: list[Switch] = []
    notes: list[str] = []
    for option in declared_options():
        values = option.tried + (option.measured if every else ())
        if values and option.variable in os.environ:
            notes.append(f"{option.key} isn't tried, because {option.variable} is set.")
        elif values:
            usual = option.default if option.usual is None else option.usual(device)
            found += [Switch(option.key, value) for value in values if value != usual]
    return found, notes
