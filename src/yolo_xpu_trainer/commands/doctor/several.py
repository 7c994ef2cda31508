"""Training on several XPUs: XCCL, and releases of oneCCL that are known to be bad."""

from __future__ import annotations

from ...diagnosis import Diagnosis, DoctorCheck, Machine, not_applicable, ok, warning
from ...remedies import XPU_WHEELS
from .seen import unless, xpus

__all__ = ["CHECKS"]


def _collectives(machine: Machine) -> Diagnosis:
    if len(found := xpus(machine)) < 2:
        return not_applicable("there are not several XPUs")
    if said := unless(machine, "several"):
        return said
    if machine.probe("several").value["xccl"]:
        return ok(f"{len(found)} XPUs can train together, by XCCL")
    if machine.is_windows:
        return warning(
            "PyTorch has no XCCL on Windows: it trains on one XPU",
            advice="Train on Linux, or one run an XPU, or with xpu_gloo=True, which is slower.",
        )
    return warning(
        "this PyTorch was built without XCCL: it trains on one XPU",
        f"python -m {XPU_WHEELS} --upgrade",
        advice="XPU builds have it since 2.8, on Linux. xpu_gloo=True goes without, and is slower.",
    )


def _oneccl(machine: Machine) -> Diagnosis:
    if len(xpus(machine)) < 2:
        return not_applicable("there are not several XPUs")
    found = machine.distribution("oneccl")
    if found is None:
        return not_applicable("oneCCL isn't a package here")
    if found.version.startswith("2022.") and machine.environ.get("CCL_ALLREDUCE") != "ring":
        return warning(
            f"oneCCL {found.version}: with 2022 several Arc Pro B60 were seen to hang in all_reduce (oneCCL#215, "
            "vllm#50545)",
            "export CCL_ALLREDUCE=ring",
            advice="It worked with that, at a cost of some 30 %, and with oneCCL 2021.17.",
        )
    return ok(found.version)


CHECKS = (
    DoctorCheck("collectives", "whether several XPUs can train together", _collectives, ("devices", "several")),
    DoctorCheck("oneccl", "releases of oneCCL that hang", _oneccl, ("devices",)),
)
"""The checks."""
