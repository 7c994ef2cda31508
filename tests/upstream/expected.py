"""Tests of Ultralytics that pass on the CPU and are known not to pass on an XPU, with the reason."""

from __future__ import annotations

EXPECTED: dict[str, dict[str, str]] = {"8.3.0": {}, "8.4.190": {}}
"""By version and test."""
