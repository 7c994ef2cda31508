"""Whether the XPUs compute what the CPU computes, as far as a few seconds allow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...diagnosis import Diagnosis, DoctorCheck, Machine, ok, problem, warning
from ...remedies import XPU_WHEELS
from .seen import unless, xpus

__all__ = ["CHECKS", "lacks_float64"]


def _numerics(machine: Machine) -> Diagnosis:
    probe = machine.probe("numerics")
    if probe.state in ("crashed", "hung"):
        return problem(
            f"comparing operators with the CPU's ended the process or the driver ({probe.text})",
            advice="`yolo-xpu doctor --numerics` shows at which operator. Update the driver, or take another release "
            "of PyTorch.",
        )
    if said := unless(machine, "numerics"):
        return said
    for row in probe.value:
        if row["fatal"]:
            seen, advice, _ = row["fatal"][0]
            return problem(
                f"{row['shown']} computes wrongly what every training needs: {seen}",
                f"python -m {XPU_WHEELS} --upgrade",
                advice=advice,
            )
    for row in probe.value:
        if row["of_some"]:
            seen, advice, whose = row["of_some"][0]
            return warning(
                f"{row['shown']}: {seen}. {whose} end before their first batch; others don't need it",
                f"python -m {XPU_WHEELS} --upgrade",
                advice=advice,
            )
    without_fp64 = {device["shown"] for device in xpus(machine) if not device["fp64"]}
    needing_fp64 = 0
    for row in probe.value:
        expected, wrong = _sorted(row["wrong"], has_fp64=row["shown"] not in without_fp64)
        needing_fp64 += len(expected)
        if wrong:
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            seen, instead, _ = wrong[0]
            return warning(
                f"{row['shown']}: {seen}{more}. A training goes round it: {instead[:1].lower()}{instead[1:]}",
                advice="`yolo-xpu doctor --numerics` shows all of them; it compares anew after an update of driver or "
                "PyTorch.",
            )
    rows = probe.value
    counts = ", ".join(f"{row['compared']} of {row['of']} operators of {row['shown']}" for row in rows)
    seen = f"{counts} are right"
    if needing_fp64:
        seen = (
            f"{counts} compared: right, but for {needing_fp64} that need float64, which the GPU lacks; a training goes "
        )
        seen += "round them"
    return ok(seen + ("" if all(r["compared"] == r["of"] for r in rows) else "; --numerics compares all"))


def _sorted(rows: Sequence[Any], *, has_fp64: bool) -> tuple[list[Any], list[Any]]:
    """Return the findings that the lack of float64 explains, which no update changes, and the others."""
    expected = [row for row in rows if not has_fp64 and lacks_float64(row[0])]
    return expected, [row for row in rows if row not in expected]


def lacks_float64(seen: str) -> bool:
    """Whether a finding, as text, is that an operator asked for float64."""
    return re.search(r"fails with .*(fp64|float64|double)", seen) is not None


CHECKS = (
    DoctorCheck("numerics", "whether the XPU computes what the CPU computes", _numerics, ("devices", "numerics")),
)
"""The check."""
