"""Environment variables that hide or break devices, or that are misspelt."""

from __future__ import annotations

import difflib
import re

from ...diagnosis import Diagnosis, DoctorCheck, Machine, not_applicable, ok, problem, warning
from .seen import is_compiled, of_import, unless, xpus

__all__ = ["CHECKS", "masks", "oneapi_variables"]

_SELECTOR, _AFFINITY = "ONEAPI_DEVICE_SELECTOR", "ZE_AFFINITY_MASK"
_FP64 = ("OverrideDefaultFP64Settings", "IGC_EnableDPEmulation")
_RELAXED = "UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS"
# Of the unified runtime's Level Zero adapters; a name that is like none of these isn't called misspelt.
_UR_L0 = (
    _RELAXED,
    "UR_L0_USE_COPY_ENGINE",
    "UR_L0_USE_COMPUTE_ENGINE",
    "UR_L0_USE_IMMEDIATE_COMMANDLISTS",
    "UR_L0_USE_MULTIPLE_COMMANDLIST_BARRIERS",
    "UR_L0_USE_DRIVER_INORDER_LISTS",
    "UR_L0_V2_FORCE_DISABLE_COPY_OFFLOAD",
    "UR_L0_DISABLE_USM_ALLOCATOR",
    "UR_L0_TRACK_INDIRECT_ACCESS_MEMORY",
    "UR_L0_SERIALIZE",
    "UR_L0_LEAKS_DEBUG",
    "UR_L0_DEBUG",
)
_OFF = {"0", "false", "no", "off"}


def masks(machine: Machine) -> dict[str, str]:
    """Return the variables that choose devices, with their values."""
    return {name: machine.environ[name] for name in (_AFFINITY, _SELECTOR) if machine.environ.get(name)}


def oneapi_variables(machine: Machine) -> list[str]:
    """Return the variables which tell that oneAPI's setvars was run."""
    found = [name for name in ("SETVARS_COMPLETED", "CMPLR_ROOT", "UMF_ROOT") if machine.environ.get(name)]
    path = machine.environ.get("LD_LIBRARY_PATH", "")
    return [*found, *(["LD_LIBRARY_PATH"] if re.search(r"[\\/]oneapi[\\/]", path, re.IGNORECASE) else [])]


def _device_masks(machine: Machine) -> Diagnosis:
    given = masks(machine)
    if not given:
        return ok("none is set")
    shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
    if found := xpus(machine):
        return ok(f"{shown}; PyTorch sees {len(found)} XPU{'s' * (len(found) > 1)} with it")
    selector = given.get(_SELECTOR, "")
    if machine.probe("devices").state == "ok" and not is_compiled(machine):
        return not_applicable(f"{shown}; this PyTorch is built without XPU support")
    if selector and _leaves_out_level_zero(selector):
        return problem(
            f"{shown}: PyTorch uses Level Zero only, which this leaves out",
            *machine.unset(_SELECTOR),
            advice="Or choose a device as in ONEAPI_DEVICE_SELECTOR=level_zero:0.",
        )
    if machine.probe("devices").state == "not run" and machine.probe("import").state != "ok":
        return warning(f"{shown}: it may hide the GPU", *machine.unset(*given))
    return problem(
        f"{shown}: with it PyTorch sees no XPU",
        *machine.unset(*given),
        advice="Or name a device that exists, before Python starts; 0 is the first.",
    )


def _leaves_out_level_zero(selector: str) -> bool:
    """Whether a selector has no Level Zero device: "level_zero:0", "*:gpu" and "!opencl:*" have some."""
    terms = [term.strip() for term in selector.lower().split(";") if term.strip()]
    chosen = [term for term in terms if not term.startswith("!")]
    discarded = {"!level_zero", "!level_zero:*", "!*", "!*:*"} & set(terms)
    return bool(discarded or (chosen and not any(re.match(r"level_zero|\*", term) for term in chosen)))


def _oneapi(machine: Machine) -> Diagnosis:
    found = oneapi_variables(machine)
    if not found:
        return ok("not active")
    imported = machine.probe("import")
    version = str(imported.value["version"]) if imported.state == "ok" else ""
    if version.startswith("2.5."):
        return ok("active, as PyTorch 2.5 needs it")
    return warning(
        f"oneAPI's environment is active ({', '.join(found)}): its libraries are found before those that PyTorch "
        "brings (pytorch#145155)",
        advice="Open a new shell in which setvars isn't run; only PyTorch 2.5 needs it.",
    )


def _fp64(machine: Machine) -> Diagnosis:
    found = [name for name in _FP64 if machine.variable(name) not in ("", "0")]
    if not found:
        return ok("not set")
    return warning(
        f"{' and '.join(found)} {'is' if len(found) == 1 else 'are'} set: with emulated float64 devices were lost "
        "(compute-runtime#907), and nothing in a training here needs it",
        *machine.unset(*found),
    )


def _level_zero(machine: Machine) -> Diagnosis:
    for name in sorted(machine.environ):
        if not name.upper().startswith("UR_L0_") or name in _UR_L0:
            continue
        if near := difflib.get_close_matches(name.upper(), _UR_L0, n=1, cutoff=0.85):
            value = machine.environ[name]
            right = f"set {near[0]}={value}" if machine.is_windows else f"export {near[0]}={value}"
            return warning(
                f"{name} is set, but has no effect: the variable is called {near[0]}", *machine.unset(name), right
            )
    value = machine.environ.get(_RELAXED, "")
    release = of_import(machine)
    if value.isdigit() and int(value) and release and release < (2, 8):
        return warning(
            f"{_RELAXED} is set, but kernels of PyTorch before 2.8 can't address more than 4 GiB: results may be wrong",
            *machine.unset(_RELAXED),
        )
    found = [name for name in sorted(machine.environ) if name.startswith("UR_L0_")]
    return ok(", ".join(found) + (" is set" if len(found) == 1 else " are set") if found else "none is set")


def _sycl_cache(machine: Machine) -> Diagnosis:
    imported = machine.probe("import")
    runtime = str((imported.value or {}).get("xpu") or "") if imported.state == "ok" else ""
    if machine.environ.get("SYCL_CACHE_PERSISTENT") == "1" and runtime >= "20250300":
        return warning(
            f"SYCL_CACHE_PERSISTENT=1 is set; SYCL runtimes from 2025.3 on ({runtime} here) were seen to crash with "
            "it, without a traceback (intel/llvm#22853, sglang#34567)",
            *machine.unset("SYCL_CACHE_PERSISTENT"),
        )
    return ok("nothing against it")


def _package_variables(machine: Machine) -> Diagnosis:
    if not any(name.startswith("YOLO_XPU_") for name in machine.environ):
        return ok("none is set")
    if said := unless(machine, "plugins"):
        return said
    unknown: dict[str, list[str]] = machine.probe("plugins").value["unknown"]
    if not unknown:
        return ok("all are known")
    hints = [f"{name} ({' or '.join(near)}?)" if near else name for name, near in unknown.items()]
    return warning(
        f"no such variable: {', '.join(hints)}; it has no effect",
        *machine.unset(*unknown),
        advice="`yolo-xpu options` lists the options.",
    )


def _autoload(machine: Machine) -> Diagnosis:
    for name in ("YOLO_XPU_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD"):
        if machine.environ.get(name, "").strip().lower() in _OFF:
            return warning(
                f"{name}={machine.environ[name]} is set: `yolo train` doesn't know of this package",
                *machine.unset(name),
                advice="Or write `import yolo_xpu_trainer` in your script.",
            )
    if machine.distribution("yolo-xpu-trainer") is None:
        return not_applicable("this package has no metadata here, as in a frozen program")
    return ok("on")


CHECKS = (
    DoctorCheck("device-masks", "ZE_AFFINITY_MASK and others that hide devices", _device_masks, ("devices",)),
    DoctorCheck("oneapi-environment", "oneAPI's setvars on top of PyTorch's libraries", _oneapi, ("import",)),
    DoctorCheck("fp64-emulation", "variables that emulate float64", _fp64),
    DoctorCheck("level-zero-variables", "misspelt or harmful UR_L0_* variables", _level_zero, ("import",)),
    DoctorCheck("sycl-cache", "SYCL_CACHE_PERSISTENT where it crashes", _sycl_cache, ("import",)),
    DoctorCheck("package-variables", "misspelt YOLO_XPU_* variables", _package_variables, ("plugins",)),
    DoctorCheck("autoload", "whether PyTorch may load this package", _autoload),
)
"""The checks."""
