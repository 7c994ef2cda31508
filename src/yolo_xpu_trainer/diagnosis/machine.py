"""The machine as the checks see it: files under a root, variables, packages, and child processes."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Literal

from . import children, registry

__all__ = ["Machine", "Probe"]


@dataclass(frozen=True)
class Probe:
    """The answer of one probe of PyTorch, made in a child process.

    Attributes:
        state: "ok"; "error" where it raised; "crashed" or "hung" where the process didn't come to its end; "not run".
        value: What was found, where it is ok.
        text: The error, how the process ended, or why it wasn't run.
        said: The end of what the process printed to standard error.
    """

    state: Literal["ok", "error", "crashed", "hung", "not run"] = "not run"
    value: Any = None
    text: str = "it wasn't asked for"
    said: str = ""


def _can_open(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _usage(path: Path) -> tuple[int, int]:
    """Return the bytes that a path's file system has, and has free."""
    total, _, free = shutil.disk_usage(path)
    return total, free


def _groups() -> frozenset[int]:
    """Return the ids of this process's groups; none on Windows."""
    return frozenset(os.getgroups()) if hasattr(os, "getgroups") else frozenset()


def _usable_processors() -> int:
    """Return on how many processors this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_files() -> int | None:
    """Return how many files this process may have open at once, None where that isn't limited."""
    try:
        resource: Any = importlib.import_module("resource")  # which Windows lacks
    except ImportError:
        return None
    soft = int(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return None if soft == resource.RLIM_INFINITY else soft


@dataclass(frozen=True)
class Machine:
    """A computer, a Python on it, and what a process sees; by default the one that this process is on.

    Attributes:
        root: What the paths of system files start with.
        environ: The environment variables.
        system: "Linux", "Windows" or "Darwin".
        processor: The processor's architecture, such as "x86_64".
        kernel: The release of the operating system's kernel.
        python: Python's version.
        bits: The size of its pointers.
        executable: Its program, which child processes run.
        packages: The directories in which it looks for packages.
        folder: The working directory.
        children: Runs child processes.
        registry: Reads Windows' registry.
        can_open: Whether this user may read and write a device file.
        groups: The ids of this process's groups.
        usage: The bytes that a path's file system has, and has free.
        processors: How many processors the machine has.
        usable_processors: On how many of them this process may run.
        open_files: How many files this process may have open at once, None where that isn't limited.
        seconds: How long a child process may be silent before it counts as hanging.
        probes: What is known of PyTorch, by probe.
    """

    root: Path = field(default_factory=lambda: Path(os.environ.get("SYSTEMDRIVE", "") + "/"))
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    system: str = field(default_factory=platform.system)
    processor: str = field(default_factory=platform.machine)
    kernel: str = field(default_factory=platform.release)
    python: tuple[int, int, int] = sys.version_info[:3]
    bits: int = struct.calcsize("P") * 8
    executable: str = sys.executable
    packages: tuple[Path, ...] = field(default_factory=lambda: tuple(Path(p) for p in sys.path if p))
    folder: Path = field(default_factory=Path.cwd)
    children: children.Children = children.lines
    registry: registry.Registry = registry.values
    can_open: Callable[[Path], bool] = _can_open
    groups: frozenset[int] = field(default_factory=_groups)
    usage: Callable[[Path], tuple[int, int]] = _usage
    processors: int = field(default_factory=lambda: os.cpu_count() or 1)
    usable_processors: int = field(default_factory=_usable_processors)
    open_files: int | None = field(default_factory=_open_files)
    seconds: float = 30
    probes: Mapping[str, Probe] = field(default_factory=dict)
    _answers: dict[tuple[str, ...], str] = field(default_factory=dict, repr=False)

    @property
    def is_windows(self) -> bool:
        """Whether it runs Windows; a WSL doesn't."""
        return self.system == "Windows"

    @property
    def is_wsl(self) -> bool:
        """Whether it is a Linux within Windows."""
        return self.system == "Linux" and ("microsoft" in self.kernel.lower() or self.path("/dev/dxg").exists())

    def path(self, path: str) -> Path:
        """Return where a system file is."""
        return self.root / path.lstrip("/")

    def read(self, path: str | Path) -> str:
        """Return a file's text without blanks at its ends, "" where it can't be read."""
        try:
            return (self.path(path) if isinstance(path, str) else path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def glob(self, directory: str, pattern: str) -> list[Path]:
        """Return the files of a system directory that match, sorted by name; none where there is no such directory."""
        try:
            return sorted(self.path(directory).glob(pattern))
        except OSError:
            return []

    def distribution(self, name: str) -> Distribution | None:
        """Return what is known of an installed package without importing it."""
        return next(iter(distributions(name=name, path=[str(path) for path in self.packages])), None)

    def distributions(self) -> list[Distribution]:
        """Return every installed package, without importing one."""
        return list(distributions(path=[str(path) for path in self.packages]))

    def ask(self, command: Sequence[str], seconds: float = 10) -> str:
        """Return what a command prints, "" where it fails or takes too long. It is run once, and its answer kept."""
        key = tuple(command)
        if key not in self._answers:
            try:
                self._answers[key] = "\n".join(self.children(command, self.environ, seconds))
            except children.ChildError:
                self._answers[key] = ""
        return self._answers[key]

    def variable(self, name: str) -> str:
        """Return an environment variable's value, "" where it isn't set; Windows doesn't tell cases apart."""
        if self.is_windows:
            return next((value for key, value in self.environ.items() if key.upper() == name.upper()), "")
        return self.environ.get(name, "")

    def probe(self, name: str) -> Probe:
        """Return what is known of PyTorch by one of the built-in probes."""
        return self.probes.get(name, Probe())

    def unset(self, *names: str) -> tuple[str, ...]:
        """Return the commands that remove environment variables from a shell."""
        return tuple(f"set {name}=" if self.is_windows else f"unset {name}" for name in names)
