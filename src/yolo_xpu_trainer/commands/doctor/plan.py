"""Which probes of PyTorch there are, in their order, and what each can't do without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ...diagnosis import Probe

__all__ = ["NEEDED", "lacking", "with_needed"]

NEEDED: dict[str, tuple[str, ...]] = {
    "import": (),
    "devices": ("import",),
    "precision": ("devices",),
    "several": ("import",),
    "memory": ("devices",),
    "triton": ("import",),
    "ultralytics": ("import",),
    "plugins": ("import",),
    "patches": ("ultralytics", "plugins"),
    "numerics": ("devices", "plugins"),
    "other-checks": ("plugins",),
}
"""The probes, in the order in which they are made, and those that each needs."""

_OF_A_DEVICE = {"precision", "memory", "numerics"}
_WITHOUT = {
    "import": "PyTorch can't be imported",
    "devices": "the XPUs can't be asked",
    "ultralytics": "Ultralytics can't be imported",
    "plugins": "the plugins can't be loaded",
}


def with_needed(wanted: Iterable[str]) -> list[str]:
    """Return the wanted probes and those that they need, in their order."""

    def walk(names: Iterable[str]) -> Iterator[str]:
        for name in names:
            yield name
            yield from walk(NEEDED[name])

    found = set(walk(wanted))
    return [name for name in NEEDED if name in found]


def lacking(name: str, found: Mapping[str, Probe]) -> str:
    """Say why a probe can't be made after what was found, "" where it can."""
    for needed in NEEDED[name]:
        if needed in found and found[needed].state != "ok":
            return found[needed].text if found[needed].state == "not run" else _WITHOUT[needed]
    if name in _OF_A_DEVICE and "devices" in found and not found["devices"].value.get("devices"):
        return "PyTorch sees no XPU"
    return ""
