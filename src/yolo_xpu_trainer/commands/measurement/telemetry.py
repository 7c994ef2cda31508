"""Which readings a busy XPU's driver provides."""

from __future__ import annotations

import torch

from ...telemetry import READINGS, Sampler, reading
from .isolation import first_line

__all__ = ["READINGS", "Sampler", "readable"]


def readable(index: int) -> tuple[list[str], str]:
    """Find out which readings the driver provides.

    Args:
        index: The XPU's.

    Returns:
        The names of the available readings, and a note on the others, "" if there are none.
    """
    found: list[str] = []
    failed: dict[str, list[str]] = {}
    for name in READINGS:
        function = reading(name)
        if function is None:
            failed.setdefault(f"torch {torch.__version__} has no such function", []).append(name)
            continue
        try:
            function(index)
        except Exception as error:  # pyzes isn't installed, there is no such sensor, or a privilege is missing
            failed.setdefault(first_line(error), []).append(name)
        else:
            found.append(name)
    reasons = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in failed.items())
    return found, f"xpu:{index} provides no readings of {reasons}." if reasons else ""
