"""Why `import torch` fails, hangs or crashes: the error is sorted by its text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from ...diagnosis import Diagnosis, DoctorCheck, Machine, Probe, not_applicable, ok, problem, warning
from ...remedies import CLIENT_DRIVERS, WINDOWS_DRIVER
from .build import build, reinstall
from .environment import oneapi_variables
from .seen import last_words
from .user_driver import install

__all__ = ["CHECKS"]

_SLOW = 20  # seconds

_ONEAPI = (
    "oneAPI's environment is active, whose libraries are found before those that PyTorch brings (pytorch#145155, "
    "#149953)"
)


def _driver_missing(machine: Machine, text: str) -> Diagnosis:
    return problem(
        "`import torch` fails: libze_loader isn't found, which is part of Intel's GPU driver",
        *install(machine),
        advice=f"By distribution: {CLIENT_DRIVERS}",
    )


def _windows_dll(machine: Machine, text: str) -> Diagnosis:
    if not machine.is_windows:
        return _library(machine, text)
    if oneapi_variables(machine):
        return _oneapi_on_top(machine, text)
    return problem(
        "`import torch` fails: c10_xpu.dll, or a library that it needs, can't be loaded (pytorch#138986). The graphics "
        "driver is missing or too old, or the download was broken",
        *reinstall(),
        advice=f"First install or update Intel's graphics driver and restart: {WINDOWS_DRIVER}. If the error stays, "
        "run these commands.",
    )


def _oneapi_on_top(machine: Machine, text: str) -> Diagnosis:
    return problem(
        f"`import torch` fails, and {_ONEAPI}",
        advice="Open a new shell in which oneAPI's setvars isn't run, by a profile either. PyTorch 2.6 and later bring "
        f"what they need. The error: {_short(text)}",
    )


def _library(machine: Machine, text: str) -> Diagnosis:
    if oneapi_variables(machine):
        return _oneapi_on_top(machine, text)
    return problem(
        f"`import torch` fails: a library that PyTorch brings is missing or broken ({_short(text)})", *reinstall()
    )


def _broken(machine: Machine, text: str) -> Diagnosis:
    return problem(f"`import torch` fails: PyTorch's files are incomplete or broken ({_short(text)})", *reinstall())


def _old_system(machine: Machine, text: str) -> Diagnosis:
    return problem(
        f"`import torch` fails: the system's C library is older than PyTorch needs ({_short(text)})",
        advice=f"Use a newer distribution, or in conda an environment with a newer libstdcxx-ng. {CLIENT_DRIVERS} "
        "names those that Intel's driver is for.",
    )


def _half_removed(machine: Machine, text: str) -> Diagnosis:
    name = "TORCH_DEVICE_BACKEND_AUTOLOAD"
    first = (f"set {name}=0",) if machine.is_windows else (f"export {name}=0",)
    return problem(
        "`import torch` fails: yolo-xpu-trainer was only partly removed",
        *first,
        "python -m pip uninstall -y yolo-xpu-trainer",
        *machine.unset(name),
        advice="Then install it again, as before: `pip install .` in a clone of its repository.",
    )


def _extension(machine: Machine, text: str) -> Diagnosis:
    return problem(
        "`import torch` fails in Intel Extension for PyTorch, which is discontinued and not needed",
        "python -m pip uninstall -y intel-extension-for-pytorch",
    )


def _module_missing(machine: Machine, text: str) -> Diagnosis:
    name = re.split(r"No module named '", text)[1].partition("'")[0]
    package, _, inside = name.partition(".")
    anew = "--force-reinstall --no-deps " if inside else ""
    return problem(f"`import torch` fails: it needs {name}, which is missing", f"python -m pip install {anew}{package}")


_CAUSES: list[tuple[str, Callable[[Machine, str], Diagnosis]]] = [
    (r"_yolo_xpu_trainer_autoload", _half_removed),
    (r"intel_extension_for_pytorch|(?:import|from|named) '?ipex\b", _extension),
    (r"No module named '(?!torch\b)[A-Za-z]", _module_missing),
    (r"c10_xpu|torch_xpu\.dll|WinError 12[67]|WinError 1114|DLL load failed", _windows_dll),
    (r"libze_loader", _driver_missing),
    (r"GLIBC_|GLIBCXX_|CXXABI_", _old_system),
    (
        r"LIBUR_LOADER|libur_loader|libsycl|libmkl|libccl|libpti|libumf|libsvml|libimf|libintlc|undefined symbol",
        _library,
    ),
    (
        r"file too short|invalid ELF|cannot import name|partially initialized|No module named 'torch|has no attribute|"
        r"SyntaxError|null bytes|EOFError|bad marshal|cannot open shared object file|truncated",
        _broken,
    ),
]
"""What an error's text names, and what that means; the first that is found counts."""


def _short(text: str) -> str:
    """Return an error's first line, without the directories of the files that it names."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), text)
    return re.sub(r"(?:[A-Za-z]:)?[\\/](?:[\w.+~ -]+[\\/])+", "", line)[:200]


def _torch_import(machine: Machine) -> Diagnosis:
    probe = machine.probe("import")
    if probe.state == "not run":
        return not_applicable(probe.text)
    if probe.state == "hung":
        return replace(_hung(machine), table=last_words(probe))
    if probe.state == "crashed":
        return replace(_crashed(machine, probe), table=last_words(probe))
    if probe.state == "error":
        for pattern, diagnose in _CAUSES:
            if re.search(pattern, probe.text):
                return diagnose(machine, probe.text)
        return problem(f"`import torch` fails ({_short(probe.text)})", *reinstall())
    seconds = float(probe.value["seconds"])
    if seconds > _SLOW:
        return warning(
            f"`import torch` took {seconds:.0f} s",
            advice="A virus scanner or a slow disk; exempt the environment's directory from scanning.",
        )
    return ok(f"{seconds:.1f} s")


def _hung(machine: Machine) -> Diagnosis:
    log = "" if machine.is_windows else " What the driver says: `sudo dmesg | grep -i -e i915 -e 'xe ' | tail -n 20`."
    return problem(
        f"`import torch` didn't end within {machine.seconds:g} s: a GPU driver that hangs does this",
        *(() if machine.is_windows else ("sudo reboot",)),
        advice="Restart the machine; if it hangs again, update the driver "
        f"({WINDOWS_DRIVER if machine.is_windows else CLIENT_DRIVERS}). On a machine that is merely slow, give "
        f"`yolo-xpu doctor --timeout 120`.{log}",
    )


def _crashed(machine: Machine, probe: Probe) -> Diagnosis:
    if oneapi_variables(machine):
        return _oneapi_on_top(machine, f"the process {probe.text}")
    if "SIGILL" in probe.text:
        return problem(
            "`import torch` crashes: the processor lacks instructions that PyTorch uses (SIGILL)",
            advice="In a virtual machine, hand the host's processor on (for QEMU, -cpu host).",
        )
    if "SIGKILL" in probe.text:
        return problem(
            "`import torch` was killed (SIGKILL), as the system does where memory runs out",
            advice="Close other programs, or give the container more memory. `free -h` shows what there is.",
        )
    found = build(machine)
    return problem(
        f"`import torch` crashes (the process {probe.text}), as it does where libraries of different releases are "
        "mixed",
        *reinstall(),
        advice="If it crashes again, Level Zero's loader and driver may not fit each other (pytorch#179891): update "
        f"both together, {CLIENT_DRIVERS}" + (f". PyTorch is {found.version}." if found else "."),
    )


CHECKS = (DoctorCheck("torch-import", "whether PyTorch can be imported, and if not, why", _torch_import, ("import",)),)
"""The check."""
