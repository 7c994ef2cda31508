"""A conda environment: its C++ library, which the system's driver gets too, and a PyTorch of conda's beside pip's."""

from __future__ import annotations

import re
from pathlib import Path

from ...diagnosis import Diagnosis, DoctorCheck, Machine, not_applicable, ok, problem, warning
from .build import build, reinstall
from .seen import is_compiled, xpus
from .user_driver import DRIVER, LOADER, conda_prefix, libraries

__all__ = ["CHECKS"]

_STANDARD = "libstdc++.so.6"
_SYMBOLS = re.compile(rb"GLIBCXX_3\.4\.(\d+)")
# Which GCC, after which conda names the package, brings which version of symbols: libstdc++'s manual, "ABI Policy and
# Guidelines".
_GCC_OF = {30: "12", 31: "13", 32: "13.2", 33: "14", 34: "15"}
_OF_PYTORCH = re.compile(r"(pytorch|pytorch-[cg]pu|libtorch|torchvision|torchaudio|pytorch-cuda)-(\d[^-]*)-[^-]+\.json")


def _registered(prefix: Path) -> dict[str, str]:
    """Return the versions of what conda itself installed of PyTorch, by package."""
    found = (_OF_PYTORCH.fullmatch(path.name) for path in sorted((prefix / "conda-meta").glob("*torch*.json")))
    return {match[1]: match[2] for match in found if match}


def _newest(path: Path) -> int:
    """Return the newest version of C++ symbols that a library names, N of GLIBCXX_3.4.N; 0 where it names none."""
    try:
        return max((int(number) for number in _SYMBOLS.findall(path.read_bytes())), default=0)
    except OSError:
        return 0


def _too_old(machine: Machine, prefix: Path) -> Diagnosis | None:
    """Return that the driver needs a newer C++ library than conda's, which PyTorch loads before the system's.

    The driver is then left out without an error, and PyTorch sees no XPU: pytorch#147226, with the remedy.
    """
    imported = machine.probe("import")
    fails = imported.state == "error" and bool(re.search(r"GLIBCXX_|CXXABI_", imported.text))
    if xpus(machine) or not (fails or is_compiled(machine)) or machine.system != "Linux":
        return None
    there = _newest(prefix / "lib" / _STANDARD)
    needed = {
        name: _newest(path)
        for name in (LOADER, DRIVER)
        for path in list(libraries(machine, name))[:1]
        if not path.is_relative_to(prefix)
    }
    name = max(needed, key=needed.__getitem__, default="")
    if not there or not name or needed[name] <= there:
        return None
    least = f">={gcc}" if (gcc := _GCC_OF.get(needed[name])) else ""
    return problem(
        f"conda's {_STANDARD} ends at GLIBCXX_3.4.{there}, and the system's {name} needs GLIBCXX_3.4.{needed[name]}: "
        "PyTorch can't load the driver, and sees no XPU (pytorch#147226)",
        f'conda install -c conda-forge "libstdcxx-ng{least}"',
        advice="Or make the environment with the system's Python: `/usr/bin/python3 -m venv .venv`.",
    )


def _conda(machine: Machine) -> Diagnosis:
    prefix = conda_prefix(machine)
    if prefix is None:
        return not_applicable("this Python isn't conda's")
    if said := _too_old(machine, prefix):
        return said
    names, there = _registered(prefix), build(machine)
    if not names or there is None:
        return ok("nothing of PyTorch was installed by conda")
    shown = ", ".join(f"{name} {version}" for name, version in names.items())
    removal = f"conda remove -y --force {' '.join(names)}"
    if there.kind == "XPU":
        return warning(
            f"conda installed {shown}, and pip {there.version} over it: what conda does next may put its own files "
            "there",
            removal,
            *reinstall(),
            advice="Anaconda's documentation: conda doesn't know what pip changed, and may break it later.",
        )
    if is_compiled(machine):
        return ok(f"{shown}, with XPU support")
    return problem(
        f"conda installed {shown}, without XPU support; pip's XPU build would be installed over it",
        removal,
        advice="Then install PyTorch's XPU build by pip.",
    )


CHECKS = (
    DoctorCheck("conda", "a conda environment's C++ library, and conda's PyTorch beside pip's", _conda, ("devices",)),
)
"""The check."""
