"""The time that events tell: the wall clock's, or what a profile's costs make of the counters."""

from __future__ import annotations

import time

from . import native

_SYNCS = ("item_syncs", "implicit_syncs", "device_syncs", "stream_syncs", "event_syncs", "d2h_blocking")


def now() -> float:
    """Return the time in seconds, from an arbitrary start.

    Where the profile in force has costs, it advances by what is done on the device and by nothing else: it is the same
    on every machine, however busy.
    """
    from .activation import current_profile

    costs = current_profile().costs
    if costs is None:
        return time.perf_counter()
    reading = native.read_json("counters")
    counters, launches = reading["counters"], reading["launches"]
    return float(
        costs.launch * counters["launches"]
        + costs.sync * sum(counters[name] for name in _SYNCS)
        + costs.byte * (counters["bytes_h2d"] + counters["bytes_d2h"])
        + costs.channels_last * counters["channels_last_primitives"]
        + sum(each * launches.get(name, 0) for name, each in costs.operators.items())
    )
