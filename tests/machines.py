"""Machines for `yolo-xpu doctor`: a tree of faked files, and child processes that answer what they are told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_xpu_trainer.commands.doctor.plan import lacking
from yolo_xpu_trainer.diagnosis import Machine, Probe
from yolo_xpu_trainer.diagnosis.children import CrashedError, HungError

GIB = 1 << 30
B580 = "Intel(R) Arc(TM) B580 Graphics"
HUNG, SEGFAULT = (
    HungError("no answer within 30 seconds", said=""),
    CrashedError("ended by SIGSEGV", said="", status=-11),
)
NO_XPU = {
    "devices": [],
    "reason": ["PyTorch has XPU support, but the driver shows no XPU", "Install it."],
    "warnings": [],
}


def device(**changes: Any) -> dict[str, Any]:
    """Return what the child tells of a B580."""
    return {
        "name": B580,
        "shown": "xpu:0 Intel Arc B580 Graphics",
        "memory": 12 * GIB,
        "free": 11 * GIB,
        "limit": None,
        "limit_text": "",
        "fp16": True,
        "fp64": True,
        "matrix": True,
        "integrated": False,
        "driver": "1.15.38646",
        "id": 0xE20B,
        "version": "20.1.4",
        **changes,
    }


def devices(*rows: dict[str, Any], warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the child tells of several devices."""
    return {"devices": list(rows), "reason": None, "warnings": list(warnings)}


def answers(**changes: Any) -> dict[str, Any]:
    """Return what the child of a healthy machine answers, by probe; an exception is how it ends, a str an error."""
    healthy = {
        "import": {
            "version": "2.14.1+xpu",
            "file": "",
            "xpu": "20250300",
            "compiled": True,
            "cuda": False,
            "seconds": 2.0,
        },
        "devices": devices(device()),
        "precision": ["bf16: because"],
        "several": {"xccl": True},
        "memory": [
            {
                "shown": "xpu:0 Intel Arc B580 Graphics",
                "available": 11 * GIB,
                "basis": "",
                "large": "",
                "bandwidth": 2e10,
            }
            | {"intact": True}
        ],
        "triton": {"version": "3.5.0", "backends": ["intel"]},
        "ultralytics": {"version": "8.4.190", "runs": ""},
        "plugins": {"others": [], "said": [], "unknown": {}},
        "patches": {"process": [["ultralytics.utils:a", "active", "why", "where"]], "training": []},
        "numerics": [{"shown": "xpu:0", "compared": 88, "of": 88, "fatal": [], "of_some": [], "wrong": []}],
        "other-checks": [],
    }
    return healthy | {name.replace("_", "-"): answer for name, answer in changes.items()}


def child(told: Mapping[str, Any], windows: str = "") -> Callable[..., Iterator[str]]:
    """Return what runs child processes, which answer what they are told to."""

    def lines(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> Iterator[str]:
        if command[0] == "powershell":
            yield from windows.splitlines()
            return
        found: dict[str, Probe] = {}
        for name in command[-1].split(","):
            yield json.dumps({"begin": name})
            answer = told[name]
            if reason := lacking(name, found):
                found[name] = Probe(text=reason)
            elif isinstance(answer, Exception):
                raise answer
            else:
                found[name] = Probe("error", text=answer) if isinstance(answer, str) else Probe("ok", answer, "")
            yield json.dumps({"probe": name, **{key: getattr(found[name], key) for key in ("state", "value", "text")}})

    return lines


class Setup:
    """A healthy Linux machine with a B580, which a test breaks.

    Args:
        folder: Where its files are written.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.site = folder / "site-packages"
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self.site.mkdir()
        self.told = answers()
        self.windows = f"{B580}|32.0.101.8250"
        self.adapters: list[str] = []
        self.more: dict[str, Any] = {}
        self.environ: dict[str, str] = {"PATH": "/usr/bin", "USER": "someone"}
        self.gpu("e20b", "xe")
        self.file("/sys/module/xe/version")
        self.file("/dev/dri/renderD128")
        self.file("/etc/os-release", "ID=ubuntu\n")
        self.library("libze_loader.so.1", "1.28.2")
        self.library("libze_intel_gpu.so.1", "1.15.38646")
        self.file("/proc/meminfo", "MemAvailable:   20000000 kB")
        self.file("/dev/shm/.keep")
        self.torch("2.14.1+xpu", xpu="20250300")
        self.package("torchvision", "0.29.1+xpu")
        self.package("ultralytics", "8.4.190")
        self.package("pip", "26.1")
        self.package("yolo-xpu-trainer", "0.1.0")

    def file(self, path: str, text: str = "") -> Path:
        """Write a system file."""
        real = self.root / path.lstrip("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_text(text)
        return real

    def remove(self, *paths: str) -> None:
        """Remove system files and links."""
        for path in paths:
            (self.root / path.lstrip("/")).unlink()

    def gpu(self, device: str, driver: str, bar: int = 16 * GIB, address: str = "0000:03:00.0") -> None:
        """Put an Intel GPU on the PCI bus."""
        at = f"/sys/bus/pci/devices/{address}"
        self.file(f"{at}/vendor", "0x8086\n")
        self.file(f"{at}/device", f"0x{device}\n")
        self.file(f"{at}/class", "0x030000\n")
        self.file(f"{at}/resource", f"0x{0:016x} 0x{(1 << 24) - 1:016x} 0x0\n0x{bar:016x} 0x{2 * bar - 1:016x} 0x0\n")
        link = self.root / at.lstrip("/") / "driver"
        link.unlink(missing_ok=True)
        if driver:
            link.symlink_to(f"../../../../bus/pci/drivers/{driver}")

    def no_gpu(self) -> None:
        """Take the GPU off the bus."""
        for name in ("vendor", "device", "class", "resource", "driver"):
            self.remove(f"/sys/bus/pci/devices/0000:03:00.0/{name}")
        self.remove("/dev/dri/renderD128")

    def library(self, name: str, version: str, directory: str = "/usr/lib/x86_64-linux-gnu") -> None:
        """Install a shared library of a version."""
        real = self.file(f"{directory}/{name.removesuffix('.1')}.{version}")
        link = real.parent / name
        link.unlink(missing_ok=True)
        link.symlink_to(real.name)

    def no_driver(self) -> None:
        """Uninstall the user-space driver."""
        for name in ("libze_loader.so.1", "libze_intel_gpu.so.1"):
            self.remove(f"/usr/lib/x86_64-linux-gnu/{name}")

    def package(self, name: str, version: str, requires: Sequence[str] = ()) -> None:
        """Install a package's metadata."""
        for old in self.site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")

    def uninstall(self, name: str) -> None:
        """Uninstall a package."""
        for path in self.site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            (path / "METADATA").unlink()
            path.rmdir()

    def torch(self, version: str, requires: Sequence[str] = (), **constants: str) -> None:
        """Install a build of PyTorch."""
        folder = self.site / "torch"
        folder.mkdir(exist_ok=True)
        lines = ["from typing import Optional", f"__version__ = {version!r}"]
        lines += [f"{name}: Optional[str] = {value!r}" for name, value in constants.items()]
        (folder / "version.py").write_text("\n".join(lines) + "\n")
        self.package("torch", version, requires)
        self.told["import"] = self.told["import"] | {"version": version, "compiled": "xpu" in version}
        numbers = version.split(".")
        if len(numbers) > 1 and numbers[1].isdigit():
            self.package("torchvision", f"0.{int(numbers[1]) + 15}.0+xpu")

    def no_xpu(self) -> None:
        """Let PyTorch see no XPU."""
        self.told["devices"] = NO_XPU

    def import_fails(self, text: str) -> None:
        """Let `import torch` fail with an error."""
        self.told["import"] = text

    def on_windows(self) -> None:
        """Make it a Windows machine."""
        self.file("/Windows/System32/ze_loader.dll")
        self.adapters = [r"PCI\VEN_8086&DEV_E20B"]
        self.more |= {"system": "Windows", "kernel": "10", "processor": "AMD64"}

    def in_wsl(self) -> None:
        """Make it a Linux within Windows."""
        self.no_gpu()
        self.file("/dev/dxg")
        self.more["kernel"] = "6.6.87.2-microsoft-standard-WSL2"

    def machine(self) -> Machine:
        """Return the machine."""
        defaults: dict[str, Any] = {
            "system": "Linux",
            "processor": "x86_64",
            "kernel": "6.14.0-generic",
            "can_open": lambda path: True,
            "groups": frozenset({1000}),
            "usage": lambda path: (100 * GIB, 50 * GIB),
            "processors": 16,
            "usable_processors": 16,
            "open_files": 1024,
            "python": (3, 12, 3),
            "bits": 64,
            "executable": "/home/someone/.venv/bin/python",
        }
        return Machine(
            root=self.root,
            environ=self.environ,
            packages=(self.site,),
            folder=self.work,
            children=child(self.told, self.windows),
            registry=lambda key, name: self.adapters,
            **(defaults | self.more),
        )
