"""What came out of checks: kept for the process, and on disk beside Ultralytics' settings."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..device_errors import is_of_device
from ..devices import DeviceInfo
from ..files import replacing
from .check import Finding

__all__ = ["keep", "key_of", "known", "path"]

_known: dict[str, dict[str, Finding]] = {}  # by device, then by check: what this process found or read


def path() -> Path:
    """Return the file, in the directory of Ultralytics' settings, which `YOLO_CONFIG_DIR` names."""
    from ultralytics.utils import USER_CONFIG_DIR

    return Path(USER_CONFIG_DIR) / "xpu_self_check.json"


def known(device: DeviceInfo) -> dict[str, Finding]:
    """Return what is known of a device with its driver and this PyTorch, by check."""
    key = key_of(device)
    if key not in _known:
        _known[key] = _read(_stored().get(key))
    return _known[key]


def keep(device: DeviceInfo, findings: Mapping[str, Finding]) -> None:
    """Note what was found of a device; on disk, if that can be written, but for errors of a driver, which may pass."""
    key = key_of(device)
    known(device).update(findings)
    stored = _stored()  # another process may have written meanwhile
    before = stored.get(key)
    stored[key] = {
        **(before if isinstance(before, dict) else {}),
        **{
            name: [found.difference, found.error]
            for name, found in findings.items()
            if not is_of_device(RuntimeError(found.error))
        },
    }
    with contextlib.suppress(OSError), replacing(path()) as beside:
        beside.write_text(json.dumps(stored, indent=1), encoding="utf-8")


def key_of(device: DeviceInfo) -> str:
    """Return what a finding depends on: the device's properties, its driver, PyTorch and this package."""
    what = astuple(replace(device, index=0))
    return " | ".join(map(str, (*what, torch.__version__, getattr(torch.version, "xpu", None), __version__)))


def _stored() -> dict[str, Any]:
    try:
        stored = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _read(entries: Any) -> dict[str, Finding]:
    found = {}
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        with contextlib.suppress(TypeError, ValueError):
            difference, error = entry
            found[name] = Finding(float(difference), str(error))
    return found
