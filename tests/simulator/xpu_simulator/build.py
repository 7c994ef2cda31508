"""Compiles the C++ part on first use and keeps it in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "libxpu_simulator.so"
FLAGS = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-DAT_PER_OPERATOR_HEADERS"]


class BuildError(RuntimeError):
    """The C++ part could not be compiled; the message has the compiler's output."""


def library() -> Path:
    """Return the compiled library, after compiling it if these sources were not yet compiled for this torch."""
    import torch

    compiler = os.environ.get("CXX", "g++")
    include = Path(torch.__file__).parent / "include"
    flags = [*FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    for folder in (include, include / "torch/csrc/api/include"):
        flags += ["-isystem", str(folder)]
    key = _fingerprint(compiler, flags, torch.__version__, torch.__file__)
    folder = _cache() / key
    path = folder / LIBRARY
    if not path.exists():
        with _lock(_cache() / f"{key}.lock"):
            if not path.exists():
                _build(compiler, flags, Path(torch.__file__).parent / "lib", folder)
    return path


def _cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "xpu-simulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fingerprint(compiler: str, flags: list[str], *more: str) -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.rglob("*")):
        if source.suffix in {".cpp", ".h"}:
            digest.update(str(source.relative_to(SOURCES)).encode())
            digest.update(source.read_bytes())
    version = _run([compiler, "--version"])
    digest.update("\0".join([compiler, version, *flags, *more]).encode())
    return digest.hexdigest()[:16]


def _build(compiler: str, flags: list[str], libraries: Path, folder: Path) -> None:
    """Compile in a temporary folder next to the final one and rename it: another process sees all of it or nothing."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        sources = sorted(SOURCES.rglob("*.cpp"), key=lambda path: "aten" not in path.parts)  # the slow ones first

        def compile_one(source: Path) -> str:
            target = temporary / f"{source.stem}.o"
            _run([compiler, *flags, "-c", str(source), "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        link = [
            "-shared",
            "-o",
            str(temporary / LIBRARY),
            *objects,
            f"-L{libraries}",
            "-ltorch_python",
            "-ltorch_cpu",
            "-lc10",
        ]
        _run([compiler, *link, f"-Wl,-rpath,{libraries}"])
        for path in objects:
            os.unlink(path)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise BuildError(
            f"The simulated XPU is compiled on first use and needs a C++ compiler; {command[0]!r} was not found. "
            "Install g++, or name another compiler in CXX."
        ) from None
    if done.returncode:
        raise BuildError(f"The simulated XPU could not be compiled:\n{' '.join(command)}\n{done.stderr}")
    return done.stdout


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
