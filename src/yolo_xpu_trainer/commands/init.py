"""`yolo-xpu init`: which wheels to install on this machine, in which order, and constraints that keep them.

It needs Python's own library only, so that it can be asked after `pip install --no-deps` of this package, before pip
has put another PyTorch there. It prints commands, and runs none. What it knows of a machine is `yolo-xpu doctor`'s.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..diagnosis import Diagnosis, Machine, Verdict
from ..errors import UsageError
from ..remedies import HARDWARE, PYTORCH_PACKAGES, XPU_INDEX
from .doctor import build, kernel
from .doctor.installer import for_this_python

__all__ = ["add_arguments", "run"]

# A pair that users report to work on Intel GPUs, on Linux and on Windows. Without a version pip takes the newest, also
# the day that one is out for which nothing was tried.
_RECOMMENDED = {"torch": "2.14.1+xpu", "torchvision": "0.29.1+xpu"}

# What an XPU build is installed as: triton-xpu is the name since PyTorch 2.10, pytorch-triton-xpu before.
_OF_THE_BUILD = ("torch", "torchvision", "torchaudio", "triton-xpu", "pytorch-triton-xpu")
_BAD = (Verdict.WARNING, Verdict.PROBLEM)
_SYSTEMS = ("Linux", "Windows")
_FILE = Path("constraints.txt")
_HEADER = "# By `yolo-xpu init`. With `pip install -U -c FILE`, nothing replaces PyTorch's XPU build."


@dataclass(frozen=True)
class _Plan:
    """What to do on a machine.

    Attributes:
        seen: What was found, a line each.
        commands: What is to be typed, in its order.
        doubts: Why a training may not work after that.
        pins: The versions to keep, by package.
    """

    seen: list[str]
    commands: list[str]
    doubts: list[str]
    pins: dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--constraints",
        type=Path,
        metavar="FILE",
        help="write the versions of PyTorch's XPU build to a file for `pip install -U -c FILE`: of the installed one, "
        "or of those to be installed",
    )


def run(args: argparse.Namespace, machine: Machine | None = None) -> int:
    """Print what was found and the commands.

    Args:
        args: The command's options.
        machine: The machine, by default this one.

    Returns:
        0 where nothing is to be done, or the commands do it; 1 where a doubt remains, which is printed; 2 where there
        is no XPU build of PyTorch for this machine.

    Raises:
        UsageError: The file can't be written, or is somebody else's.
    """
    machine = machine or Machine()
    if refusal := _refusal(machine):
        print(f"{refusal.seen}. {refusal.advice}")
        return 2
    plan = _plan(machine)
    if args.constraints:
        _write(args.constraints, plan.pins)
        plan.seen.append(f"Constraints: {args.constraints} ({', '.join(f'{n} {v}' for n, v in plan.pins.items())})")
    print("\n".join(plan.seen))
    for doubt in plan.doubts:
        print(f"Warning: {doubt}.")
    missing = _missing(machine)
    if plan.commands or missing:
        print("\nType these, in this order; nothing is run by itself:\n")
        file = args.constraints or _FILE
        is_kept = args.constraints and not (
            plan.commands and plan.pins != _RECOMMENDED
        )  # else they change what is kept
        keep = [] if is_kept else [f"yolo-xpu init --constraints {_quoted(file, machine)}"]
        rest = [f"python -m pip install -c {_quoted(file, machine)} {' '.join(missing)}"] if missing else []
        _print_commands(machine, *plan.commands, *keep, *rest, "yolo-xpu doctor")
    else:
        file = args.constraints or _FILE
        print("\nNothing is to be installed. `yolo-xpu doctor` looks at the driver and the rest.")
        if not args.constraints:
            print(
                f"`yolo-xpu init --constraints {_quoted(file, machine)}` writes these versions to a file to keep them:"
            )
        _print_commands(machine, f"python -m pip install -U -c {_quoted(file, machine)} ultralytics")
    return 1 if plan.doubts else 0


def _print_commands(machine: Machine, *commands: str) -> None:
    """Print commands as they work with the machine's Python."""
    said = for_this_python(machine, Diagnosis(Verdict.OK, "", commands))
    print("\n".join(said.fix))
    if said.advice:
        print(f"\n{said.advice}")


def _check(name: str, machine: Machine) -> Diagnosis:
    """Return what `yolo-xpu doctor` says by one of its checks."""
    return next(check for check in (*build.CHECKS, *kernel.CHECKS) if check.name == name).examine(machine)


def _refusal(machine: Machine) -> Diagnosis | None:
    """Say why there is no XPU build for this machine, or return None."""
    python = _check("python", machine)
    if python.verdict is Verdict.PROBLEM:
        return python
    if machine.system not in _SYSTEMS:
        return Diagnosis(Verdict.PROBLEM, f"{python.seen}: PyTorch has XPU builds for Linux and Windows", (), HARDWARE)
    return None


def _plan(machine: Machine) -> _Plan:
    found = build.build(machine)
    gpu = _check("gpu", machine)
    plan = _Plan([f"{_check('python', machine).seen}."], [], [], {})
    if gpu.verdict in _BAD:
        plan.doubts.append(f"{gpu.seen}. {gpu.advice.rstrip('.')}")
    else:
        plan.seen.append(f"Intel GPU: {gpu.seen}.")
    if found is None or found.kind != "XPU":
        plan.seen.append(
            f"PyTorch: {found.version or 'of an unknown version'}, a {found.kind} build, which can't use an Intel GPU."
            if found
            else "PyTorch: none. `pip install` of this package or of ultralytics alone brings one that can't use an "
            "Intel GPU."
        )
        if any(machine.distribution(name) for name in PYTORCH_PACKAGES.split()):
            plan.commands.append(f"python -m pip uninstall -y {PYTORCH_PACKAGES}")
        pins = " ".join(f'"{name}=={version}"' for name, version in _RECOMMENDED.items())
        plan.commands.append(f"python -m pip install {pins} --index-url {XPU_INDEX}")
        plan.pins.update(_RECOMMENDED)
        return plan
    plan.seen.append(f"PyTorch: {found.version}, an XPU build.")
    for name in ("torch-build", "torch-release", "torch-dependencies", "torchvision"):
        said = _check(name, machine)
        if said.verdict in _BAD:
            plan.doubts.append(said.seen)
            if not plan.commands:  # the first fix is of what the others may follow from
                plan.commands.extend(said.fix)
    plan.pins.update(_installed(machine, found, fits=_check("torchvision", machine).verdict is Verdict.OK))
    return plan


def _installed(machine: Machine, found: build.Build, *, fits: bool) -> dict[str, str]:
    """Return the versions of what belongs to the installed XPU build; of a torchvision only if it fits."""
    versions = {name: package.version for name in _OF_THE_BUILD if (package := machine.distribution(name))}
    versions.setdefault("torch", found.version)
    return {name: version for name, version in versions.items() if fits or name != "torchvision"}


def _missing(machine: Machine) -> list[str]:
    """Return what this package needs beside PyTorch and isn't installed."""
    own = machine.distribution("yolo-xpu-trainer")
    lines = (own.requires if own else None) or ["ultralytics"]
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in lines if "extra" not in line.partition(";")[2]]
    return [name for name in names if name != "torch" and not machine.distribution(name)]


def _quoted(file: Path, machine: Machine) -> str:
    return subprocess.list2cmdline([str(file)]) if machine.is_windows else shlex.quote(str(file))


def _write(file: Path, pins: dict[str, str]) -> None:
    """Write the constraints, over an older file of ours alone.

    Raises:
        UsageError: It can't be written, or isn't ours.
    """
    try:
        if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(_HEADER):
            raise UsageError(f"{file} exists, and isn't of this command. Name another file with --constraints.")
        lines = [_HEADER, *(f"{name}=={version}" for name, version in pins.items())]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"can't write {file} ({error.strerror or error}). Name another file with --constraints."
        ) from error
