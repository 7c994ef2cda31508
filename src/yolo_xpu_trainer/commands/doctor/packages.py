"""Ultralytics, what is patched in it, and plugins."""

from __future__ import annotations

import re

from ...diagnosis import Diagnosis, DoctorCheck, Machine, not_applicable, ok, problem, warning
from .build import build, of_vision
from .seen import unless

__all__ = ["CHECKS"]

_SKIPPED = {
    "not needed": "not needed: this Ultralytics does it otherwise",
    "not there": "not needed: this Ultralytics has no such function",
}
"""Why a patch isn't active, by its state, where that is as it should be."""

_REPORT = "Report it, with `yolo-xpu doctor --report report.md`."


def _ultralytics(machine: Machine) -> Diagnosis:
    found = machine.distribution("ultralytics")
    if found is None:
        return problem("Ultralytics isn't installed", "python -m pip install ultralytics")
    numbers = tuple(int(part) for part in found.version.split(".")[:2] if part.isdigit())
    if numbers < (8, 3):
        return problem(
            f"Ultralytics {found.version}: this package needs 8.3.0 or later",
            'python -m pip install -U "ultralytics>=8.3.0" --no-deps',
        )
    probe = machine.probe("ultralytics")
    if probe.state in ("error", "crashed", "hung"):
        if (found_torch := build(machine)) and "torchvision::" in f"{probe.text} {probe.said}":
            return problem(
                f"`import ultralytics` fails: torchvision is built for another PyTorch ({probe.text[:200]})",
                *of_vision(found_torch),
            )
        if missing := re.search(r"No module named '([\w.]+)'", probe.text):
            return problem(
                f"`import ultralytics` fails: it needs {missing[1]}, which is missing",
                "python -m pip install ultralytics",  # which brings what is missing, and replaces nothing
            )
        if missing := re.search(r"(libGL|libgthread|libglib)[\w.-]*\.so[.\d]*", probe.text):
            return problem(
                f"`import ultralytics` fails: OpenCV needs {missing[0]}, which systems without a desktop lack",
                *_of_opencv(machine),
            )
        lines = probe.said.splitlines() or [probe.text]
        return problem(
            f"`import ultralytics` fails ({probe.text[:200]})",
            "python -m pip install -U --force-reinstall --no-deps ultralytics",
            advice=f"The last line: {lines[-1][:200]}" if probe.said else "",
        )
    return ok(f"Ultralytics {found.version}")


def _of_opencv(machine: Machine) -> tuple[str, ...]:
    """Return the commands that give OpenCV the libraries of a desktop, or an OpenCV that does without."""
    if re.search(r"^id(?:_like)?=.*\b(?:debian|ubuntu)\b", machine.read("/etc/os-release").lower(), re.MULTILINE):
        return ("sudo apt update", "sudo apt install libgl1 libglib2.0-0")
    return ("python -m pip uninstall -y opencv-python", "python -m pip install opencv-python-headless")


def _patches(machine: Machine) -> Diagnosis:
    probe = machine.probe("patches")
    if probe.state == "error":
        return warning(f"the patches can't be listed: {probe.text[:300]}", advice=_REPORT)
    if said := unless(machine, "patches"):
        return said
    process, training = probe.value["process"], probe.value["training"]
    rows = [(target, _SKIPPED.get(state, state), why, where) for target, state, why, where in process]
    rows += [
        (target, _SKIPPED.get(state, f"{state}, while a detector trains"), why, where)
        for target, state, why, where in training
    ]
    table = (
        ("patched in Ultralytics", "state", "why", "source"),
        *((target.removeprefix("ultralytics."), *rest) for target, *rest in rows),
    )
    bad = [(row[0], row[1]) for row in table[1:] if row[1].startswith(("moved", "failed"))]
    if bad:
        return warning(
            f"not patched in this Ultralytics: {', '.join(f'{target} ({state})' for target, state in bad[:4])}",
            advice=f"A run goes on without what they do. {_REPORT}",
            table=table,
        )
    active = sum(row[1] == "active" for row in process)
    wanted = sum(row[1] == "wanted" for row in training)
    skipped = len(process) + len(training) - active - wanted
    return ok(f"{active} active, {wanted} more while a detector trains, {skipped} not needed here", table=table)


def _plugins(machine: Machine) -> Diagnosis:
    probe = machine.probe("plugins")
    if probe.state == "error" and (missing := re.search(r"No module named '(\w+)'", probe.text)):
        return problem(
            f"this package needs {missing[1]}, which is missing: Ultralytics is as without it",
            f"python -m pip install {missing[1]}",
        )
    if probe.state == "error":
        return problem(f"the plugins can't be loaded: {probe.text[:300]}", advice=_REPORT)
    if said := unless(machine, "plugins"):
        return said
    if said_of := [text.removeprefix("XPU: ") for text in probe.value["said"]]:
        return warning(said_of[0], advice="Update that package or uninstall it; runs go on without its plugin.")
    others = probe.value["others"]
    return ok(f"of other packages: {', '.join(others)}") if others else not_applicable("no other package has plugins")


CHECKS = (
    DoctorCheck("ultralytics", "Ultralytics' version, and whether it can be imported", _ultralytics, ("ultralytics",)),
    DoctorCheck("patches", "what is patched in Ultralytics, and what couldn't be", _patches, ("patches",)),
    DoctorCheck("plugins", "plugins of other packages", _plugins, ("plugins",)),
)
"""The checks."""
