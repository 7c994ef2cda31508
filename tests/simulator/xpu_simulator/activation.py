"""Switching the simulated device on, and from one GPU to another."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

from . import counters, faults, native, profiles, quirks

CAPACITY_VARIABLE = "XPU_SIMULATOR_CAPACITY"
ASYNCHRONOUS_VARIABLE = "XPU_SIMULATOR_ASYNCHRONOUS"
DEFAULT_PROFILE = "arc-b580"

_current: str | None = None


def is_active() -> bool:
    """Tell whether this process has the simulated device."""
    return _current is not None


def current_profile() -> profiles.Profile:
    """Return the profile in force."""
    return profiles.find(_current or DEFAULT_PROFILE)


def activate(profile: str = DEFAULT_PROFILE) -> None:
    """Give this process the simulated device; the first call decides the profile, later ones do nothing.

    Call it before the first backward pass of the process, even one on the CPU: torch counts its devices then.

    Args:
        profile: A name out of `profiles.PROFILES`.

    Raises:
        RuntimeError: This torch has an XPU of its own, so there is nothing to simulate.
        BuildError: The C++ part could not be compiled.
    """
    global _current
    if _current is not None:
        return
    import torch

    if torch._C._has_xpu:
        raise RuntimeError("This PyTorch build supports XPUs itself: the simulator is for builds that don't.")
    profiles.find(profile)
    native.call("install", 1)
    from . import collectives, composites, torch_xpu

    torch_xpu.install()
    composites.install()
    collectives.install()
    _current = profile
    _show(profile)
    faults.order_from_environment()
    quirks.order_from_environment()
    if os.environ.get(ASYNCHRONOUS_VARIABLE, "0") != "0":
        native.call("set_asynchronous", 1)
    atexit.register(counters.write_report)


@contextmanager
def use_profile(name: str) -> Iterator[profiles.Profile]:
    """Turn the simulated device into another GPU for the length of a block.

    Tensors of the outer profile must not be used inside, where their device may not exist.

    Args:
        name: A name out of `profiles.PROFILES`.

    Yields:
        The profile.
    """
    global _current
    profile = profiles.find(name)
    activate(name)
    before = _current
    _current = name
    _show(name)
    try:
        yield profile
    finally:
        _current = before
        _show(before or DEFAULT_PROFILE)


def _show(name: str) -> None:
    """Tell the runtime what devices there are, and have torch ask again."""
    from . import torch_xpu

    profile = profiles.find(name)
    native.call("empty_cache")
    native.call("forget_primitives")
    for device in range(profiles.MAX_DEVICES):
        native.call("reset_peak_stats", device)
        native.call("reset_accumulated_stats", device)
    if profile.properties is not None:
        properties = profile.properties
        capacity = int(os.environ.get(CAPACITY_VARIABLE) or properties.total_memory)
        for _ in range(profile.devices):
            native.call(
                "add_device",
                properties.name.encode(),
                capacity,
                profile.max_allocation,
                properties.has_fp64,
                profile.reports_free_memory,
                profile.reports_no_memory_free,
                profile.exhaustion,
            )
    native.call("set_machine")
    torch_xpu.forget()
