"""Windows' registry: its real one there, a faked module elsewhere. No device is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from yolo_xpu_trainer.diagnosis import Machine, gpus, registry

CLASSES = r"SYSTEM\CurrentControlSet\Control\Class"
ADAPTERS = CLASSES + r"\{4d36e968-e325-11ce-bfc1-08002be10318}"


class FakedRegistry(ModuleType):
    """Windows' module, whose keys are a tree of dictionaries. A subkey without values may not be opened."""

    HKEY_LOCAL_MACHINE = "machine"

    def __init__(self, key: str, subkeys: dict[str, dict[str, Any]]) -> None:
        super().__init__("winreg")
        self.key, self.subkeys = key, subkeys

    @contextmanager
    def OpenKey(self, opened: Any, name: str) -> Iterator[Any]:  # noqa: N802  (its name in Windows)
        if isinstance(opened, dict):
            found = opened.get(name)
        else:
            found = self.subkeys if (opened, name) == (self.HKEY_LOCAL_MACHINE, self.key) else None
        if not found:
            raise PermissionError(5, "Access is denied") if found == {} else FileNotFoundError(2, name)
        yield found

    def QueryInfoKey(self, opened: Any) -> tuple[int, int, int]:  # noqa: N802
        return len(opened), 0, 0

    def EnumKey(self, opened: Any, index: int) -> str:  # noqa: N802
        return list(opened)[index]

    def QueryValueEx(self, opened: Any, name: str) -> tuple[Any, int]:  # noqa: N802
        if name not in opened:
            raise FileNotFoundError(2, name)
        return opened[name], 1


def test_windows_adapters_are_read_where_some_may_not_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    subkeys = {
        "0000": {"MatchingDeviceId": r"PCI\VEN_8086&DEV_E20B", "DriverDesc": "Intel(R) Arc(TM) B580 Graphics"},
        "0001": {"DriverDesc": "without an id"},
        "0002": {"MatchingDeviceId": 7},
        "Configuration": {"x": "y"},
        "Properties": {},
        "0003": {"MatchingDeviceId": r"PCI\VEN_8086&DEV_A780"},
    }
    monkeypatch.setitem(sys.modules, "winreg", FakedRegistry(ADAPTERS, subkeys))
    assert gpus.of_registry(Machine(system="Windows")) == ["e20b", "a780"]
    assert registry.values(ADAPTERS, "MatchingDeviceId") == [r"PCI\VEN_8086&DEV_E20B", r"PCI\VEN_8086&DEV_A780"]
    assert registry.values(r"SYSTEM\Nothing", "MatchingDeviceId") == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a registry")
def test_without_a_registry_there_are_no_adapters() -> None:
    assert gpus.of_registry(Machine()) == []


@pytest.mark.skipif(sys.platform != "win32", reason="asks Windows")
def test_windows_own_registry_is_read() -> None:
    assert "Display" in registry.values(CLASSES, "Class")  # in every Windows
    assert all(len(device) == 4 for device in gpus.of_registry(Machine()))
