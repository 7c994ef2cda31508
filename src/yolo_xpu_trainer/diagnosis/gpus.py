"""Which Intel GPUs there are in this machine, by their PCI ids, without a driver's help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .machine import Machine

__all__ = ["GPU", "INTEL", "Family", "described", "family_of", "gpus", "has_driver_of_wsl", "of_registry", "of_windows"]


@dataclass(frozen=True)
class Family:
    """A generation of GPUs.

    Attributes:
        name: What it is called.
        listed: Whether PyTorch's documentation lists it as supported on XPU.
        discrete: Whether it is a card, with memory of its own.
        has_matrix_units: Whether all of the family have matrix units.
        driver: The kernel driver that Linux takes by default: "xe" where it is the only one.
    """

    name: str
    listed: bool
    discrete: bool = False
    has_matrix_units: bool = False
    driver: str = "i915"


# By PCI id: Linux, include/drm/intel/pciids.h. Which are listed: docs.pytorch.org, notes/get_start_xpu.html. Matrix
# units are claimed of families all of which are known to have them.
_FAMILIES = {
    r"56[9ab].|4f8.": Family("Arc A (Alchemist)", True, True, True),
    r"56c.": Family("Data Center GPU Flex (Alchemist)", False, True, True),
    r"e2..": Family("Arc B (Battlemage)", True, True, True, "xe"),
    r"0b[de].|0b6.": Family("Data Center GPU Max (Ponte Vecchio)", True, True, True),
    r"64..": Family("Core Ultra 200V (Lunar Lake)", True, False, True, "xe"),
    r"7d[5d][15]": Family("Core Ultra with Arc graphics (Meteor Lake-H or Arrow Lake-H)", True),
    r"7d..|b640": Family("Core Ultra without Arc graphics (Meteor Lake-U, Arrow Lake-U or -S)", False),
    r"b0..": Family("Core Ultra series 3 (Panther Lake)", True, driver="xe"),
    r"fd8.": Family("Wildcat Lake", False, driver="xe"),
    r"490.": Family("Iris Xe MAX (DG1)", False, True),
    r"9a..|4c..|46..|a7..": Family("Iris Xe or UHD Graphics (11th to 14th generation Core)", False),
}
_UNKNOWN = Family("an Intel GPU older than 11th generation Core, or unknown to this program", False)

_DISPLAY = re.compile(r"0x03")
_ADAPTERS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
_OF_INTEL = re.compile(r"PCI\\VEN_8086&DEV_([0-9a-f]{4})\b", re.IGNORECASE)
INTEL = "0x8086"
"""The vendor of its PCI devices, as /sys tells it."""


@dataclass(frozen=True)
class GPU:
    """An Intel GPU on the PCI bus.

    Attributes:
        address: Its PCI address, such as "0000:03:00.0".
        device: Its PCI id, four hexadecimal digits.
        driver: The kernel driver that has it, "" where none does.
        path: Its directory below /sys.
    """

    address: str
    device: str
    driver: str
    path: Path

    @property
    def family(self) -> Family:
        """Its generation."""
        return family_of(self.device)

    def __str__(self) -> str:
        return described(self.device)


def family_of(device: str) -> Family:
    """Return the generation of a PCI id, four hexadecimal digits."""
    return next((family for ids, family in _FAMILIES.items() if re.fullmatch(ids, device.lower())), _UNKNOWN)


def described(device: str) -> str:
    """Return what a PCI id is called in messages."""
    return f"{family_of(device).name} [8086:{device}]"


def gpus(machine: Machine) -> list[GPU]:
    """Return the Intel GPUs that Linux sees on the PCI bus, cards first; none on Windows and in WSL."""
    found = []
    for path in machine.glob("/sys/bus/pci/devices", "*"):
        if machine.read(path / "vendor") == INTEL and _DISPLAY.match(machine.read(path / "class")):
            driver = path / "driver"
            name = driver.readlink().name if driver.is_symlink() else ""
            found.append(GPU(path.name, machine.read(path / "device").removeprefix("0x"), name, path))
    return sorted(found, key=lambda gpu: not gpu.family.discrete)


def of_windows(machine: Machine) -> list[tuple[str, str]] | None:
    """Return the name and driver version of each Intel GPU that Windows knows, None where it can't be asked."""
    query = 'Get-CimInstance Win32_VideoController | ForEach-Object { "$($_.Name)|$($_.DriverVersion)" }'
    answer = machine.ask(["powershell", "-NoProfile", "-NonInteractive", "-Command", query])
    rows = [line.partition("|") for line in answer.splitlines() if "|" in line]
    return [(name.strip(), version.strip()) for name, _, version in rows if "intel" in name.lower()] if rows else None


def of_registry(machine: Machine) -> list[str]:
    """Return the PCI ids of the Intel GPUs that Windows has a driver for, cards first, without starting a program.

    A card that was taken out may be among them: Windows keeps what it noted of its driver.
    """
    found = [_OF_INTEL.match(text) for text in machine.registry(_ADAPTERS, "MatchingDeviceId")]
    ids = dict.fromkeys(match[1].lower() for match in found if match)
    return sorted(ids, key=lambda device: not family_of(device).discrete)


def has_driver_of_wsl(machine: Machine) -> bool:
    """Whether Windows hands the driver of an Intel GPU to this WSL; of which GPU isn't told there.

    The directory's name is as users of WSL report it (microsoft/WSL#6423, ArchWSL#308).
    """
    return machine.path("/dev/dxg").exists() and bool(machine.glob("/usr/lib/wsl/drivers", "iigd_dch*.inf_*"))
