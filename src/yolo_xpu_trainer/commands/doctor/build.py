"""Python, and which build of PyTorch is installed: read from disk, before anything is imported."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

from ...diagnosis import Diagnosis, DoctorCheck, Machine, not_applicable, ok, problem, warning
from ...remedies import HARDWARE, PYTORCH_PACKAGES, XPU_INDEX, XPU_WHEELS
from .seen import is_compiled

__all__ = ["CHECKS", "Build", "build", "of_vision", "reinstall"]

_LEAST_PYTHON = (3, 10)
_ARCHITECTURES = {"x86_64", "amd64"}
_TORCHVISION_IS_AHEAD = 15  # torch 2.13 goes with torchvision 0.28, and with no other: so since 2.0
_STABLE_ABI = (
    (2, 14),
    (0, 29),
)  # from these releases on any later torch will do: torchvision 0.29.1 requires torch>=2.14
_INTEL_LIBRARIES = re.compile(
    r"(intel[-_].*|mkl|dpcpp[-_].*|onemkl[-_].*|tcmlib|umf|oneccl|impi[-_]rt|pyzes|.*triton.*)"
)

_REPORTED = (
    ((2, 8), (2, 8), "compiled kernels crash on an A770 (pytorch#159974)"),
    ((2, 8), (2, 8), "max pooling in channels_last is slow on Arc B (torch-xpu-ops#1861)"),
    ((2, 10), (2, 99), "memory that runs out may abort the process (physical-ai-studio#440)"),
    ((2, 8), (2, 13), "max pooling's gradients in channels_last are wrong beyond 2^31 elements (torch-xpu-ops#3940)"),
)
"""What was reported of releases that are otherwise fit: the first and the last of them, and what it is."""


def reinstall() -> tuple[str, ...]:
    """Return the commands that install PyTorch's XPU build anew, whatever is there."""
    return (
        f"python -m pip uninstall -y {PYTORCH_PACKAGES}",
        "python -m pip cache purge",
        f"python -m {XPU_WHEELS}",
    )


def replace_build() -> tuple[str, ...]:
    """Return the commands that put the XPU build in the place of another: pip does nothing while any is installed."""
    return (f"python -m pip uninstall -y {PYTORCH_PACKAGES}", f"python -m {XPU_WHEELS}")


@dataclass(frozen=True)
class Build:
    """A PyTorch on disk.

    Attributes:
        version: Its version with the label, such as "2.14.1+xpu"; "" where the files don't tell.
        xpu: The version of its SYCL runtime, None in other builds and before 2.7.
        cuda: The version of CUDA, None in other builds.
        path: Its directory.
    """

    version: str
    xpu: str | None
    cuda: str | None
    path: Path

    @property
    def release(self) -> tuple[int, ...]:
        """The first two numbers of its version."""
        return tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])

    @property
    def kind(self) -> str:
        """What it is built for: "XPU", "CUDA", "ROCm" or "CPU"."""
        label = self.version.partition("+")[2]
        if "xpu" in label or self.xpu:
            return "XPU"
        return "CUDA" if self.cuda or label.startswith("cu") else "ROCm" if "rocm" in label else "CPU"


def build(machine: Machine) -> Build | None:
    """Read which PyTorch is installed, None where there is none."""
    for directory in machine.packages:
        path = directory / "torch"
        if any((path / name).exists() for name in ("version.py", "__init__.py", "lib")):
            told = _constants(machine.read(path / "version.py"))
            version = told.get("__version__") or ""
            if not version and (found := machine.distribution("torch")):
                version = found.version
            return Build(version, told.get("xpu"), told.get("cuda"), path)
    return None


def _constants(source: str) -> dict[str, str]:
    """Return the strings that a module's text assigns to names, without running it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return {}
    found = {}
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found.update({target.id: value.value for target in targets if isinstance(target, ast.Name)})
    return found


def _python(machine: Machine) -> Diagnosis:
    version = ".".join(map(str, machine.python))
    seen = f"Python {version}, {machine.bits} bits, {machine.system} on {machine.processor or 'an unknown processor'}"
    if machine.bits != 64:
        return problem(f"{seen}: PyTorch has builds for 64 bits only", advice="Install a 64-bit Python.")
    if machine.python[:2] < _LEAST_PYTHON:
        return problem(f"{seen}: this package needs Python 3.10 or later", advice="Install a newer Python.")
    if machine.processor and machine.processor.lower() not in _ARCHITECTURES:
        return problem(f"{seen}: PyTorch has XPU builds for x86-64 only", advice=HARDWARE)
    return ok(seen)


def _torch_build(machine: Machine) -> Diagnosis:
    for name in ("torch.py", "torch/__init__.py"):
        if (machine.folder / name).exists() and not (machine.folder / "torch" / "version.py").exists():
            return warning(
                f"the working directory has a {name}, which scripts there import instead of PyTorch",
                advice="Rename it.",
            )
    found = build(machine)
    if found is None:
        return problem("PyTorch isn't installed", *replace_build())  # a torchvision of another build may be
    if not found.version:
        return problem(f"PyTorch's files are incomplete: {found.path} has no version", *reinstall())
    if found.kind == "XPU":
        runtime = f", SYCL runtime {found.xpu}" if found.xpu else ""
        return ok(f"PyTorch {found.version}, an XPU build{runtime}")
    if is_compiled(machine):
        return ok(f"PyTorch {found.version} by its files, but it says that it has XPU support")
    return problem(
        f"PyTorch {found.version} is a {found.kind} build: it is built without XPU support, and trains on the CPU or "
        "another vendor's GPU",
        *replace_build(),
    )


def _torch_release(machine: Machine) -> Diagnosis:
    found = build(machine)
    if found is None or not found.release:
        return not_applicable("PyTorch isn't installed")
    if found.release < (2, 5):
        return problem(f"PyTorch {found.version}: XPUs are supported from 2.5 on", *replace_build())
    if found.release == (2, 13) and found.kind == "XPU":
        return warning(
            f"PyTorch {found.version}: its topk was seen to return wrong indices on XPUs (vllm-xpu-kernels#473), and "
            "with driver 26.05 its nonzero to miss elements (torch-xpu-ops#4396); a detector may learn less, without "
            "an error",
            f"python -m {XPU_WHEELS} --upgrade",
        )
    if found.release == (2, 5) and found.kind == "XPU":
        if not _oneapi(machine):
            return problem(
                "PyTorch 2.5 needs oneAPI's Deep Learning Essentials in the environment, which later releases bring",
                *replace_build(),
                advice="Or run oneAPI's setvars before Python starts.",
            )
        return warning("PyTorch 2.5 works with oneAPI's environment only", *replace_build())
    if found.release < (2, 8) and found.kind == "XPU":
        return warning(
            f"PyTorch {found.version}: before 2.8 it trains on one GPU only, and kernels can't address 4 GiB at once; "
            "with 2.6 new drivers were seen to fail on a B580 (pytorch#188953)",
            f"python -m {XPU_WHEELS} --upgrade",
        )
    reported = [text for first, last, text in _REPORTED if first <= found.release <= last]
    return ok(
        f"no wrong results at a training's sizes are known of {found.version} on XPUs that this package neither checks "
        "nor avoids" + (f". Reported of it: {'; '.join(reported)}" if reported else "")
    )


def _oneapi(machine: Machine) -> bool:
    return any(name in machine.environ for name in ("SETVARS_COMPLETED", "CMPLR_ROOT"))


def _requirements(found: Distribution, machine: Machine) -> list[tuple[str, str]]:
    """Return what a package pins exactly on this system, as names and versions."""
    pins = []
    for line in found.requires or []:
        requirement, _, marker = line.partition(";")
        pin = re.fullmatch(r"\s*([A-Za-z0-9._-]+)\s*\(?==\s*([^),\s]+)\)?\s*", requirement)
        system = re.search(r"platform_system\s*==\s*['\"](\w+)", marker)
        python = re.search(r"python_version\s*(<|>=)\s*['\"]([\d.]+)", marker)
        if not pin or "extra" in marker or (system and system[1] != machine.system):
            continue
        if python:
            limit = tuple(int(n) for n in python[2].split("."))
            if (machine.python[: len(limit)] < limit) != (python[1] == "<"):
                continue
        pins.append((pin[1], pin[2]))
    return pins


def _dependencies(machine: Machine) -> Diagnosis:
    found, metadata = build(machine), machine.distribution("torch")
    if found is None or found.kind != "XPU":
        return not_applicable("PyTorch isn't an XPU build")
    leftovers = [path.name for directory in machine.packages for path in _glob(directory, "~*orch*")]
    if leftovers:
        return warning(f"{', '.join(leftovers)}: what an interrupted pip left behind", *reinstall())
    if metadata is None:
        return warning("PyTorch has no metadata (dist-info), so that pip doesn't know of it", *reinstall())
    if metadata.version.partition("+")[0] != found.version.partition("+")[0]:
        return problem(
            f"PyTorch's files are of {found.version}, its metadata of {metadata.version}: one was installed over "
            "another",
            *reinstall(),
        )
    wrong = []
    for name, version in _requirements(metadata, machine):
        if _INTEL_LIBRARIES.fullmatch(name):
            there = machine.distribution(name)
            if there is None:
                wrong.append(f"{name} {version} is missing")
            elif there.version.partition("+")[0] != version.partition("+")[0]:
                wrong.append(f"{name} is {there.version} instead of {version}")
    if wrong:
        return problem(f"PyTorch {found.version} lacks what it was built with: {'; '.join(wrong[:4])}", *reinstall())
    if ipex := machine.distribution("intel-extension-for-pytorch"):
        return warning(
            f"Intel Extension for PyTorch {ipex.version} is installed: it is discontinued, isn't needed, and works "
            "with one release of PyTorch only",
            "python -m pip uninstall -y intel-extension-for-pytorch",
        )
    return ok("what it was built with is here")


def _glob(directory: Path, pattern: str) -> list[Path]:
    try:
        return sorted(directory.glob(pattern))
    except OSError:
        return []


def _torchvision(machine: Machine) -> Diagnosis:
    found, vision = build(machine), machine.distribution("torchvision")
    if found is None or len(found.release) < 2:
        return not_applicable("PyTorch isn't installed")
    if vision is None:
        return problem("torchvision isn't installed, which Ultralytics needs", *of_vision(found))
    version = _version_of_vision(machine) or vision.version
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    label = version.partition("+")[2]
    least, most = _visions(found.release)
    if found.release[0] == 2 and not least <= numbers <= most:
        wanted = ".".join(map(str, least)) + (" or later" if most > least else "")
        return problem(
            f"torchvision {version} doesn't fit PyTorch {found.version}, which needs {wanted}", *of_vision(found)
        )
    if found.kind == "XPU" and label and "xpu" not in label:
        return problem(f"torchvision {version} is built for another PyTorch than {found.version}", *of_vision(found))
    return ok(f"torchvision {version} fits")


def _visions(torch: tuple[int, ...]) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return the first and the last release of torchvision that fit a release of PyTorch."""
    stable_torch, stable_vision = _STABLE_ABI
    if torch >= stable_torch:
        return stable_vision, (math.inf, math.inf)
    only = (0, torch[1] + _TORCHVISION_IS_AHEAD)
    return only, only


def _version_of_vision(machine: Machine) -> str:
    """Return torchvision's version by its files, which have the label that a package index's metadata lack."""
    paths = [directory / "torchvision" / "version.py" for directory in machine.packages]
    return next((version for path in paths if (version := _constants(machine.read(path)).get("__version__"))), "")


def of_vision(found: Build) -> tuple[str, ...]:
    """Return the commands that install the torchvision that fits a PyTorch."""
    if found.kind != "XPU" or len(found.release) < 2:
        return replace_build()
    (major, minor), last = _visions(found.release)
    pinned = f"torchvision>={major}.{minor}" if math.inf in last else f"torchvision=={major}.{minor}.*"
    return (
        "python -m pip uninstall -y torchvision",
        f'python -m pip install "torch=={found.version}" "{pinned}" --index-url {XPU_INDEX}',
    )


def _wheel_safety(machine: Machine) -> Diagnosis:
    """Look for what makes the next `pip install` put another PyTorch in the place of the XPU build."""
    found = build(machine)
    if found is None or found.kind != "XPU":
        return not_applicable("PyTorch isn't an XPU build")
    release = found.version.partition("+")[0]
    asking = []
    foreign = []
    for package in machine.distributions():
        name = package.metadata["Name"] or "?"
        if name.lower() == "triton" and any(machine.distribution(n) for n in ("triton-xpu", "pytorch-triton-xpu")):
            foreign.append(name)
        asking += [
            f"{name} {package.version} needs {pin} {version}"
            for pin, version in _requirements(package, machine)
            if pin.lower() == "torch"
            and version.partition("+")[0].rstrip(".*") not in (release, release.rpartition(".")[0])
        ]
    if foreign:
        return warning(
            "two Tritons are installed, triton and XPU's own, in one directory: torch.compile takes whichever was last",
            *reinstall(),
        )
    if asking:
        return warning(
            f"{'; '.join(sorted(set(asking))[:3])}, not {found.version}: the next `pip install` may replace the XPU "
            "build",
            "python -m pip install torch torchvision torchaudio --upgrade --index-url " + XPU_INDEX,
            advice="Or uninstall what asks for it.",
        )
    pinned = " ".join(
        f'"{name}=={there.version}"' for name in ("torch", "torchvision") if (there := machine.distribution(name))
    )
    return ok(f"nothing installed asks for another PyTorch. Keep it in later updates: pip install -U … {pinned}")


CHECKS = (
    DoctorCheck("python", "Python's version and the platform", _python),
    DoctorCheck("torch-build", "which build of PyTorch is on disk", _torch_build, ("import",)),
    DoctorCheck("torch-release", "releases of PyTorch that are too old or known to be bad", _torch_release),
    DoctorCheck("torch-dependencies", "the SYCL runtime and what else PyTorch was built with", _dependencies),
    DoctorCheck("torchvision", "whether torchvision fits PyTorch", _torchvision),
    DoctorCheck("wheel-safety", "what would replace the XPU build at the next pip install", _wheel_safety),
)
"""The checks."""
