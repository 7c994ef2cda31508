"""A simulated Intel GPU for a stock PyTorch build.

`activate()` gives this process an `xpu` device whose memory is host memory; so does the environment variable
`XPU_SIMULATOR=<profile>` in any process that imports torch. `use_profile()` turns it into another GPU, `count()` tells
what was done on it, `faults` orders its failures, `quirks` its wrong results, `asynchronous()` makes non-blocking
copies late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import counters, faults, profiles, quirks
    from .activation import activate, is_active, use_profile
    from .counters import Counts, count
    from .streams import asynchronous

__all__ = [
    "Counts",
    "activate",
    "asynchronous",
    "count",
    "counters",
    "faults",
    "is_active",
    "profiles",
    "quirks",
    "use_profile",
]

_HOME = {
    "activate": "activation",
    "is_active": "activation",
    "use_profile": "activation",
    "count": "counters",
    "Counts": "counters",
    "asynchronous": "streams",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: pytest and torch import this package in processes that never need it."""
    from importlib import import_module

    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
