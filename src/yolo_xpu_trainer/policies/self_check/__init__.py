"""Before a run, the XPU is compared with the CPU: an operator that is wrong costs a training, without an error.

Each policy names what it leans on by the hook `xpu_numerics`; what every training needs stands in `operators.py`. What
was found is kept on disk, so that a second training with the same device, driver and PyTorch compares nothing.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import torch

from ...devices import CLIENT_DRIVERS, XPU_WHEELS, DeviceInfo, info
from ...errors import WrongResultsError
from ...hookspecs import hookimpl
from ...numerics import SELF_CHECK, Check, Finding, examine
from ...options import Option
from ...ranks import CHILD_VARIABLE
from ...run import Run
from .operators import CHECKS

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")
_OTHER_VERSIONS = f"Install another release of PyTorch (`{XPU_WHEELS} --upgrade`) or of the driver ({CLIENT_DRIVERS})."


@hookimpl
def xpu_options() -> list[Option[Any]]:
    return [SELF_CHECK]


@hookimpl
def xpu_numerics() -> list[Check]:
    return CHECKS


@hookimpl(tryfirst=True)
def xpu_configure(trainer: Any) -> None:
    """Compare what this run may meet; the parent of a DDP run does so for its workers.

    Raises:
        WrongResultsError: Something is wrong that the run can't do without.
    """
    run: Run = trainer.xpu
    asked = run.options[SELF_CHECK]
    if asked is False or (run.is_worker and CHILD_VARIABLE in os.environ):  # not a process that tuning started
        return
    wanted = [c for checks in run.hooks.xpu_numerics() for c in checks if _is_met(c, run) and c.needed(trainer)]
    for device in map(info, run.indices):
        findings = _examine(wanted, device, anew=asked == "full")
        if wrong := [found for found in findings if not found.right and found.check and not found.check.instead]:
            raise _refusal(device, wrong)


def _is_met(check: Check, run: Run) -> bool:
    """Whether a run computes in a check's dtype: one of 16 bits in its own only."""
    return check.dtype not in (torch.bfloat16, torch.float16) or check.dtype is run.precision.dtype


def _examine(wanted: list[Check], device: DeviceInfo, *, anew: bool) -> list[Finding]:
    """Make the checks, and say that and how long it took, if any was to be made."""
    began: list[tuple[int, float]] = []

    def begin(n: int) -> None:
        _LOGGER.info(f"XPU: comparing {n} operators of {device} with the CPU's, once for this driver and PyTorch…")
        began.append((n, time.perf_counter()))

    findings = list(examine(wanted, device, anew=anew, begin=begin))
    for n, start in began:
        wrong = sum(not found.right for found in findings)
        _LOGGER.info(
            f"XPU: {n} operators compared in {time.perf_counter() - start:.1f} s, "
            f"{f'{wrong} of {len(findings)} wrong' if wrong else 'all right'}; `yolo-xpu doctor --numerics` lists them."
        )
    return findings


def _refusal(device: DeviceInfo, wrong: list[Finding]) -> WrongResultsError:
    first = wrong[0]
    assert first.check is not None
    more = f" So do {len(wrong) - 1} more operators." if len(wrong) > 1 else ""
    return WrongResultsError(
        f"{device} can't be trained on with PyTorch {torch.__version__} and driver {device.driver}: {first}.{more} The "
        f"model would learn less than it should, without an error. {first.check.advice or _OTHER_VERSIONS} "
        f"`yolo-xpu doctor --numerics` compares all operators anew, {SELF_CHECK.key}='full' before a training, too; "
        f"{SELF_CHECK.key}=False trains all the same.",
        device=str(device),
        findings=wrong,
    )
