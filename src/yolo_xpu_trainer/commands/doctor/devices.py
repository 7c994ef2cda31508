"""The XPUs that PyTorch sees, and what they can do."""

from __future__ import annotations

from typing import Any

from ...diagnosis import Diagnosis, DoctorCheck, Machine, Verdict, not_applicable, ok, problem, warning
from ...diagnosis.gpus import family_of
from ...remedies import CLIENT_DRIVERS, HARDWARE, WINDOWS_DRIVER
from . import conda, environment, kernel, user_driver
from .seen import is_compiled, last_words, unless, xpus
from .user_driver import install

__all__ = ["CHECKS"]

_CAUSES = (*kernel.CHECKS, *user_driver.CHECKS, *conda.CHECKS, environment.CHECKS[0])
"""What keeps PyTorch from seeing an XPU."""

_UNSUPPORTED = "not officially supported by PyTorch XPU"


def _gib(size: int | None) -> str:
    return "not reported by the driver" if size is None else f"{size / 2**30:.1f} GiB"


def _limit(device: dict[str, Any]) -> str:
    size = device["limit"]
    return "no limit" if size is None else f"less than {size / 2**30:g} GiB: {device['limit_text']}"


def _table(machine: Machine) -> tuple[tuple[str, ...], ...]:
    found = xpus(machine)
    precision = machine.probe("precision")
    amp = precision.value if precision.state == "ok" else [f"can't tell: {precision.text}"] * len(found)
    rows = {
        "memory": [_gib(device["memory"]) for device in found],
        "free memory": [_gib(device["free"]) for device in found],
        "one allocation": [_limit(device) for device in found],
        "float16": ["yes" if device["fp16"] else "no" for device in found],
        "float64": ["yes" if device["fp64"] else "no" for device in found],
        "matrix units": ["yes" if device["matrix"] else "no" for device in found],
        "integrated": ["yes" if device["integrated"] else "no" for device in found],
        "driver": [device["driver"] for device in found],
        "amp=True means": amp,
    }
    return (("", *(device["shown"] for device in found)), *((name, *cells) for name, cells in rows.items()))


def _devices(machine: Machine) -> Diagnosis:
    probe = machine.probe("devices")
    if probe.state == "hung":
        return problem(
            f"asking the devices didn't end within {machine.seconds:g} s: the driver hangs",
            *(() if machine.is_windows else ("sudo reboot",)),
            advice="Restart the machine. If it hangs again, update the driver: "
            f"{WINDOWS_DRIVER if machine.is_windows else CLIENT_DRIVERS}. On a machine that is merely slow, give "
            "`yolo-xpu doctor --timeout 120`."
            + (
                ""
                if machine.is_windows
                else " What the driver says: `sudo dmesg | grep -i -e i915 -e 'xe ' | tail -n 20`."
            ),
        )
    if probe.state == "crashed":
        return problem(
            f"asking the devices crashes (the process {probe.text}): Level Zero's loader and the driver may not fit "
            "each other (pytorch#179891)",
            *install(machine),
            advice=f"Update both together: {WINDOWS_DRIVER if machine.is_windows else CLIENT_DRIVERS}, then restart.",
            table=last_words(probe),
        )
    if probe.state == "error":
        return problem(f"asking the devices failed ({probe.text[:200]})", *install(machine))
    if probe.state == "not run":
        return not_applicable(f"can't tell: {probe.text}")
    found = xpus(machine)
    if found:
        amp = machine.probe("precision")
        names = []
        for i, device in enumerate(found):
            precision = f", {amp.value[i].partition(':')[0]}" if amp.state == "ok" else ""
            names.append(f"{device['shown']} ({_gib(device['memory'])}{precision})")
        return ok(", ".join(names), table=_table(machine))
    if not is_compiled(machine):
        return not_applicable("this PyTorch is built without XPU support")
    seen, remedy = probe.value["reason"]
    if causes := [check.name for check in _CAUSES if check.examine(machine).verdict is Verdict.PROBLEM]:
        return problem(f"No XPU: {seen}", advice=f"Fix `{causes[0]}` first (`yolo-xpu doctor --check {causes[0]}`).")
    return problem(f"No XPU: {seen}", *(() if machine.is_windows else install(machine)), advice=remedy)


def _matrix_units(machine: Machine) -> Diagnosis:
    if said := unless(machine, "devices"):
        return said
    found = xpus(machine)
    if not found:
        return not_applicable("PyTorch sees no XPU")
    for device in found:
        family = family_of(f"{device['id']:04x}") if device["id"] else None
        if family and family.has_matrix_units and not device["matrix"]:
            apt = tuple(command for command in install(machine) if "apt" in command and " libze" not in command)
            apt = (*apt, "sudo apt install intel-ocloc") if apt else ()
            return warning(
                f"{device['shown']} has matrix units, but PyTorch is told that it has none, as where libocloc is "
                "missing (pytorch#196074): amp=True takes fp16 instead of bf16",
                *apt,
                advice="libocloc must be of the driver's version. amp='bf16' takes bf16 all the same.",
            )
    return ok("as seen: " + ", ".join(f"xpu:{i} {'yes' if d['matrix'] else 'no'}" for i, d in enumerate(found)))


def _support(machine: Machine) -> Diagnosis:
    probe = machine.probe("devices")
    if said := unless(machine, "devices"):
        return said
    told = [text for text in probe.value["warnings"] if _UNSUPPORTED in text]
    unlisted = [d["shown"] for d in xpus(machine) if d["id"] and not family_of(f"{d['id']:04x}").listed]
    if told or unlisted:
        name = unlisted[0] if unlisted else "the GPU"
        return warning(
            f"{name} isn't officially supported by PyTorch: results may be wrong, and kernels missing",
            advice=f"The supported ones: {HARDWARE}. `yolo-xpu doctor --numerics` compares this one's results with the "
            "CPU's.",
        )
    return ok("supported, as far as the GPU tells its id") if xpus(machine) else not_applicable("PyTorch sees no XPU")


CHECKS = (
    DoctorCheck("devices", "the XPUs that PyTorch sees, and what they can do", _devices, ("devices", "precision")),
    DoctorCheck("matrix-units", "matrix units that the GPU has and the driver denies", _matrix_units, ("devices",)),
    DoctorCheck("support-status", "whether PyTorch supports the GPU officially", _support, ("devices",)),
)
"""The checks."""
