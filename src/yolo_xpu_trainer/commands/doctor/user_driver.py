"""The user-space driver: Level Zero's loader, Intel's driver under it, their versions, and whether they fit."""

from __future__ import annotations

import re
from pathlib import Path

from ...diagnosis import Diagnosis, DoctorCheck, Machine, not_applicable, ok, problem, warning
from ...diagnosis.gpus import family_of, of_windows
from ...remedies import CLIENT_DRIVERS, WINDOWS_DRIVER
from .kernel import container
from .seen import no_xpu_seen, xpus

__all__ = ["CHECKS", "DRIVER", "LOADER", "conda_prefix", "install", "libraries"]

LOADER, DRIVER = "libze_loader.so.1", "libze_intel_gpu.so.1"
_COMPILERS = (
    "libigc.so.2",
    "libigc.so.1",
    "libocloc.so",
)  # for the report: of which versions fit, nothing is known here
_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/local/lib/x86_64-linux-gnu",
    "/opt/intel/lib",
    "/usr/lib/x86_64-linux-gnu/intel-opencl",
    "/run/opengl-driver/lib",
)
_PACKAGES = ("libze1", "libze-intel-gpu1", "intel-level-zero-gpu", "intel-opencl-icd", "level-zero", "libze-dev")

# intel/compute-runtime 26.18.38308 is released with the loader 1.28 (intel/llvm#22280). A loader that is newer than the
# driver asks it for functions that it lacks: torch.xpu.get_device_properties crashed (pytorch#179891).
_LOADER_OF_DRIVER = ((1, 28), 38308)
# What Intel's guide to TensorFlow on Arc cards in WSL asks for, in 2022; PyTorch's documents name no minimum.
_OLDEST_OF_WINDOWS = (31, 0, 101, 3490)


def install(machine: Machine) -> tuple[str, ...]:
    """Return the commands that install the user-space driver on this distribution; none where they aren't known."""
    release = machine.read("/etc/os-release").lower()
    words = set(re.findall(r"^(?:id|id_like)=\"?([^\"\n]*)", release, re.MULTILINE))
    names = {name for line in words for name in line.split()}
    if "ubuntu" in names:  # 24.04's own packages are older than Arc B
        return (
            "sudo add-apt-repository -y ppa:kobuk-team/intel-graphics",
            "sudo apt update",
            "sudo apt install libze1 libze-intel-gpu1 intel-ocloc",
        )
    if "debian" in names and not _is_old_debian(release):
        return ("sudo apt update", "sudo apt install libze1 libze-intel-gpu1 intel-opencl-icd")
    if "fedora" in names:
        return ("sudo dnf install oneapi-level-zero intel-compute-runtime",)
    if "arch" in names:
        return ("sudo pacman -S level-zero-loader intel-compute-runtime",)
    return ()


def _is_old_debian(release: str) -> bool:
    """Whether it is Debian 12 or older, by /etc/os-release in small letters: apt there knows no libze-intel-gpu1."""
    version = re.search(r"^version_id=\"?(\d+)", release, re.MULTILINE)
    return bool(re.search(r"^id=\"?debian\b", release, re.MULTILINE)) and version is not None and int(version[1]) < 13


def conda_prefix(machine: Machine) -> Path | None:
    """Return the conda environment whose Python this is, or a virtual environment's; None elsewhere."""
    try:
        found = Path(machine.executable).resolve().parents[1]
        return found if (found / "conda-meta").is_dir() else None
    except (OSError, IndexError):
        return None


def _directories(machine: Machine) -> list[Path]:
    """Return where libraries are looked for: what conda's Python runs finds its environment's before the system's."""
    found = [Path(part) for part in machine.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    conda = conda_prefix(machine)
    found += [conda / "lib"] if conda else []
    return [*found, *(machine.path(directory) for directory in _DIRECTORIES)]


def libraries(machine: Machine, name: str) -> dict[Path, str]:
    """Return each copy of a library in the order in which it is looked for, with its version, "" where it isn't told.

    The version is what the file is called that the name is a link to: libze_loader.so.1 -> libze_loader.so.1.28.2.
    """
    found: dict[Path, str] = {}
    for directory in _directories(machine):
        path = directory / name
        if path.exists():
            real = path.resolve()
            found.setdefault(real, re.sub(r"^.*?\.so\.?", "", real.name))
    return found


def package_versions(machine: Machine) -> dict[str, str]:
    """Return the versions of the driver's packages on Debian and Ubuntu, by package."""
    found = {}
    for block in machine.read("/var/lib/dpkg/status").split("\n\n"):
        name = re.match(r"Package: (.+)", block)
        version = re.search(r"^Version: (.+)$", block, re.MULTILINE)
        if name and version and name[1] in _PACKAGES and "\nStatus: install ok installed" in block:
            found[name[1]] = version[1]
    return found


def _user_driver(machine: Machine) -> Diagnosis:
    if machine.is_windows:
        files = [machine.path(f"/Windows/System32/{name}") for name in ("ze_loader.dll", "ze_intel_gpu64.dll")]
        if files[0].exists():
            return ok("Level Zero's loader is in System32")
        if not machine.path("/Windows/System32").exists():
            return not_applicable("there is no C:\\Windows\\System32 here")
        return no_xpu_seen(machine) or problem(
            "there is no ze_loader.dll in System32: Intel's graphics driver isn't installed, or has no Level Zero",
            advice=f"Install Intel's graphics driver, then restart: {WINDOWS_DRIVER}",
        )
    if machine.system != "Linux":
        return not_applicable("there is none")
    loader, driver = libraries(machine, LOADER), libraries(machine, DRIVER)
    found = {LOADER: loader, DRIVER: driver, **{name: libraries(machine, name) for name in _COMPILERS}}
    rows = (
        ("library", "version", "file"),
        *((name, version or "?", str(path)) for name, files in found.items() for path, version in files.items()),
        *((f"package {name}", version, "") for name, version in package_versions(machine).items()),
    )
    missing = [name for name in (LOADER, DRIVER) if not found[name]]
    if not missing:
        return ok(f"loader {_first(loader)}, driver {_first(driver)}", table=rows)
    if said := no_xpu_seen(machine):
        return said
    where = "in the container's image" if container(machine) else "on this system"
    return problem(
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not {where}: the user-space driver isn't "
        "installed",
        *install(machine),
        advice=f"By distribution: {CLIENT_DRIVERS}"
        + (
            ". This Debian has no package of it: take a newer one, or Intel's own packages"
            if _is_old_debian(machine.read("/etc/os-release").lower())
            else ""
        ),
        table=rows,
    )


def _first(found: dict[Path, str]) -> str:
    return next(iter(found.values()), "") or "of unknown version"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _driver_match(machine: Machine) -> Diagnosis:
    if machine.system != "Linux":
        return not_applicable("loader and driver come together")
    loader, driver = libraries(machine, LOADER), libraries(machine, DRIVER)
    for name, found in ((LOADER, loader), (DRIVER, driver)):
        versions = {version for version in found.values() if version}
        if len(versions) > 1:
            rows = (("file", "version"), *((str(path), version) for path, version in found.items()))
            return warning(
                f"{name} is here in {len(versions)} versions: {', '.join(sorted(versions))}; the first found is used",
                advice="Keep one: take other copies out of LD_LIBRARY_PATH, or uninstall what brought them. A loader "
                "and a driver that don't fit crash (pytorch#179891).",
                table=rows,
            )
    crashed = machine.probe("devices").state == "crashed"
    if not loader or not driver:
        return not_applicable("loader and driver aren't both here")
    told = _numbers(_first(loader)), _numbers(_first(driver))
    least_loader, least_driver = _LOADER_OF_DRIVER
    newer = bool(told[0]) and len(told[1]) >= 3 and told[0][:2] >= least_loader and told[1][2] < least_driver
    if newer or crashed:
        seen = (
            f"the loader {_first(loader)} is newer than the driver {_first(driver)}"
            if newer
            else f"asking the devices crashed, with loader {_first(loader)} and driver {_first(driver)}"
        )
        return (problem if crashed else warning)(
            f"{seen}: such pairs were seen to crash in get_device_properties (pytorch#179891)",
            *install(machine),
            advice="Both must come from one release, so update both together; reboot after an update of the driver.",
        )
    return ok(f"loader {_first(loader)} and driver {_first(driver)} aren't known not to fit")


def _driver_version(machine: Machine) -> Diagnosis:
    found = xpus(machine)
    told = str(found[0]["driver"]) if found else ""
    imported = machine.probe("import")
    release = _numbers(imported.value["version"])[:2] if imported.state == "ok" else ()
    if machine.is_windows:
        known = of_windows(machine) or []
        for name, version in known:
            if not found and (0,) < _numbers(version) < _OLDEST_OF_WINDOWS:
                return problem(
                    f"{name} has the driver {version}, older than {'.'.join(map(str, _OLDEST_OF_WINDOWS))}, the least "
                    "that a guide of Intel's asks for",
                    advice=f"Update it with the Intel Driver & Support Assistant, then restart: {WINDOWS_DRIVER}",
                )
        if known:
            return ok(", ".join(f"{name}: {version}" for name, version in known))
    if not told:
        return not_applicable("can't tell: PyTorch sees no XPU that could tell its driver's version")
    # Driver 26.05.37020 (torch-xpu-ops#4396) with 2.13: nonzero misses elements.
    if release == (2, 13) and "37020" in told:
        is_seen_there = any(family_of(f"{device['id'] or 0:04x}").name.startswith("Arc B") for device in found)
        are_several = len(found) > 1
        advice = "It was right with driver 26.22.38646, and with PyTorch 2.12."
        if are_several:
            advice += (
                " Take another PyTorch: in drivers after 26.05, regressions with several GPUs were reported "
                "(compute-runtime#922, #953)."
            )
        return (problem if is_seen_there else warning)(
            f"driver {told} with PyTorch 2.13: on Arc B nonzero was seen to miss elements (torch-xpu-ops#4396)",
            *(() if are_several else install(machine)),
            advice=advice,
        )
    return ok(f"{told}; no minimum is documented by PyTorch")


CHECKS = (
    DoctorCheck(
        "user-driver", "Level Zero's loader and Intel's driver, and their versions", _user_driver, ("devices",)
    ),
    DoctorCheck("driver-match", "whether loader and driver fit each other", _driver_match, ("devices",)),
    DoctorCheck("driver-version", "the driver against what is known of versions", _driver_version, ("devices",)),
)
"""The checks."""
