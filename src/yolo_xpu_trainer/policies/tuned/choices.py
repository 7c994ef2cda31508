"""What `yolo-xpu autotune` chose, on disk beside Ultralytics' settings: by device, driver, versions, model family."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ...devices import DeviceInfo
from ...files import replacing

__all__ = ["Choice", "Place", "any_for", "family", "find", "forget", "keep", "path", "place"]

_SIZE = re.compile(r"(\d+)[nslmxbtce](?=[-.]|$)")  # of "yolo11n-seg", as Ultralytics' `yaml_model_load` finds it


@dataclass(frozen=True)
class Place:
    """Where a choice holds.

    Attributes:
        device: The GPU's name and its memory in MiB.
        driver: Its driver's version.
        torch: The version of PyTorch.
        ultralytics: The version of Ultralytics.
        family: The model family and the task, see `family`.
    """

    device: str
    driver: str
    torch: str
    ultralytics: str
    family: str

    def differs(self, other: Place) -> str:
        """Say in which versions another place differs, "" where it is another device or model, or the same place."""
        if (self.device, self.family) != (other.device, other.family):
            return ""
        words = {"driver": "driver", "torch": "PyTorch", "ultralytics": "Ultralytics"}
        changed = {name: (getattr(other, name), getattr(self, name)) for name in words}
        return ", ".join(f"{words[name]} {was} (now {now})" for name, (was, now) in changed.items() if was != now)


@dataclass(frozen=True)
class Choice:
    """What was faster than the defaults.

    Attributes:
        options: Values of `xpu_*` options, by option name.
        arguments: Values of Ultralytics' arguments, by name.
        precision: "bf16" or "fp16" where both were measured, else "".
        gain: How much faster, as a fraction of the default's speed.
        measured: On what: "yolo11n, imgsz 640, batch 16".
        date: When, as "2026-11-26".
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    precision: str = ""
    gain: float = 0.0
    measured: str = ""
    date: str = ""


def path() -> Path:
    """Return the file, in the directory of Ultralytics' settings, which `YOLO_CONFIG_DIR` names."""
    from ultralytics.utils import USER_CONFIG_DIR

    return Path(USER_CONFIG_DIR) / "xpu_autotune.json"


def place(device: DeviceInfo, of_family: str) -> Place:
    """Return where a run is."""
    from ultralytics import __version__ as ultralytics

    name = f"{device.name}, {device.total_memory >> 20} MiB"
    return Place(name, device.driver, torch.__version__, ultralytics, of_family)


def family(model: object, task: str) -> str:
    """Return a model's family and its task, such as "yolo11 detect", "" where the model is unknown.

    It is the architecture without its size; a checkpoint of a user's says what it was made from.

    Args:
        model: What a training has as `model`: the name of a `.yaml` or of a checkpoint.
        task: As Ultralytics calls it.
    """
    name = str(model or "")
    if name.endswith(".pt") and Path(name).is_file():
        name = _made_from(Path(name)) or name
    stem = Path(name).stem
    return f"{_SIZE.sub(lambda found: found[1], stem)} {task}" if stem else ""


def _made_from(checkpoint: Path) -> str:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=False)
        model = content["model"] or content["ema"]  # which a run that hasn't finished has instead
        return str(model.yaml["yaml_file"])
    except Exception:  # Ultralytics will say what is wrong with it
        return ""


def find(here: Place) -> tuple[Choice | None, str]:
    """Look for a choice.

    Args:
        here: Where the run is.

    Returns:
        The choice that holds here, None where there is none, and in which versions the newest differs that held before.
    """
    stale = ""
    for where, choice in reversed(_stored()):
        if where == here:
            return choice, ""
        stale = stale or here.differs(where)
    return None, stale


def any_for(device: DeviceInfo) -> bool:
    """Whether anything was chosen for a device, whatever the versions and the model."""
    name = place(device, "").device
    return any(where.device == name for where, _ in _stored())


def keep(here: Place, choice: Choice) -> None:
    """Remember a choice, in the place of an older one.

    Raises:
        OSError: It can't be written.
    """
    _write([*(entry for entry in _stored() if entry[0] != here), (here, choice)])


def forget(device: DeviceInfo) -> int:
    """Forget every choice for a device; return how many there were.

    Raises:
        OSError: The file can't be written.
    """
    stored, name = _stored(), place(device, "").device
    rest = [entry for entry in stored if entry[0].device != name]
    if len(rest) < len(stored):
        _write(rest)
    return len(stored) - len(rest)


def _write(entries: list[tuple[Place, Choice]]) -> None:
    content = {"schema": 1, "choices": [{**asdict(where), **asdict(choice)} for where, choice in entries]}
    path().parent.mkdir(parents=True, exist_ok=True)
    with replacing(path()) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _stored() -> list[tuple[Place, Choice]]:
    """Return what is on disk, oldest first; what another version or somebody else wrote otherwise is left out."""
    try:
        content = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    found = content.get("choices") if isinstance(content, dict) else None
    entries = []
    for entry in found if isinstance(found, list) else ():
        with contextlib.suppress(TypeError, KeyError, ValueError):
            entries.append((_read(Place, entry), _read(Choice, entry)))
    return entries


def _read(kind: Any, entry: Any) -> Any:
    """Make a `Place` or a `Choice` of an entry.

    Raises:
        TypeError: A value has another type.
        KeyError: A value is missing.
    """
    types = {"options": dict, "arguments": dict, "gain": (int, float)}
    values = {one.name: entry[one.name] for one in fields(kind)}
    for name, value in values.items():
        if not isinstance(value, types.get(name, str)):  # type: ignore[arg-type]
            raise TypeError(name)
    return kind(**values)
