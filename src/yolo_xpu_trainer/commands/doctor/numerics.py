"""Whether the XPUs compute what the CPU computes, as far as a few seconds allow."""

from __future__ import annotations

from ...diagnosis import Diagnosis, DoctorCheck, Machine, ok, problem, warning
from ...remedies import XPU_WHEELS
from .seen import unless

__all__ = ["CHECKS"]


def _numerics(machine: Machine) -> Diagnosis:
    probe = machine.probe("numerics")
    if probe.state in ("crashed", "hung"):
        return problem(
            f"comparing operators with the CPU's ended the process or the driver ({probe.text})",
            "yolo-xpu doctor --numerics",
            advice="The command shows at which operator. Update the driver, or take another release of PyTorch.",
        )
    if said := unless(machine, "numerics"):
        return said
    for row in probe.value:
        if row["fatal"]:
            seen, advice = row["fatal"][0]
            return problem(
                f"{row['shown']} computes wrongly what every training needs: {seen}",
                f"python -m {XPU_WHEELS} --upgrade",
                advice=advice,
            )
    for row in probe.value:
        if row["wrong"]:
            more = f", and {len(row['wrong']) - 1} more" if len(row["wrong"]) > 1 else ""
            seen, instead = row["wrong"][0]
            return warning(
                f"{row['shown']}: {seen}{more}. A training goes round it: {instead[:1].lower()}{instead[1:]}",
                "yolo-xpu doctor --numerics",
                advice="The command shows all of them; it compares anew after an update of driver or PyTorch.",
            )
    rows = probe.value
    counts = ", ".join(f"{row['compared']} of {row['of']} operators of {row['shown']}" for row in rows)
    return ok(
        f"{counts} are right" + ("" if all(r["compared"] == r["of"] for r in rows) else "; --numerics compares all")
    )


CHECKS = (DoctorCheck("numerics", "whether the XPU computes what the CPU computes", _numerics, ("numerics",)),)
"""The check."""
