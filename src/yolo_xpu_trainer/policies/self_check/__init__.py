"""Before a run, the XPU is compared with the CPU: an operator that is wrong costs a training, without an error.

Each policy names what it leans on by the hook `xpu_numerics`; what every training needs stands in `operators.py`. What
was found is kept on disk, so that a second training with the same device, driver and PyTorch compares nothing.
"""

from __future__ import annotations

import io
import logging
import os
from typing import Any

import torch

from ...devices import DeviceInfo, info
from ...errors import WrongResultsError
from ...hookspecs import hookimpl
from ...numerics import SELF_CHECK, Check, Finding, announced, table, tell
from ...options import Option
from ...ranks import CHILD_VARIABLE
from ...remedies import OTHER_RELEASES
from ...run import Run
from .operators import checks

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")
_WIDTH = 140  # of the table, in columns


@hookimpl
def xpu_options() -> list[Option[Any]]:
    return [SELF_CHECK]


@hookimpl
def xpu_numerics() -> list[Check]:
    return checks()


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
    every = [check for found in run.hooks.xpu_numerics() for check in found]
    met = [check for check in every if _is_met(check, run) and check.needed(trainer)]
    for device in map(info, run.indices):
        anew = asked == "full"
        wanted = [check for check in every if check.dtype is not torch.float16 or device.has_fp16] if anew else met
        try:
            findings = list(announced(wanted, device, anew=anew))
        finally:
            told = tell(device)
        if told and anew:
            _LOGGER.info(_as_text(device, findings))
        wrong = [found for found in findings if not found.right and found.check and not found.check.instead]
        if wrong := [found for found in wrong if found.check in met]:
            raise _refusal(device, wrong)


def _is_met(check: Check, run: Run) -> bool:
    """Whether a run computes in a check's dtype: one of 16 bits in its own only."""
    return check.dtype not in (torch.bfloat16, torch.float16) or check.dtype is run.precision.dtype


def _as_text(device: DeviceInfo, findings: list[Finding]) -> str:
    """Return the table of what came out of all checks, for a log."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table(device, findings))
    return captured.get()


def _advice(check: Check) -> str:
    """Return what is known of an operator, and where other releases are."""
    return f"{check.advice or 'Take another release of PyTorch, or of the driver.'} {OTHER_RELEASES}"


def _refusal(device: DeviceInfo, wrong: list[Finding]) -> WrongResultsError:
    first = wrong[0]
    assert first.check is not None
    more = f" So do {len(wrong) - 1} more operators." if len(wrong) > 1 else ""
    return WrongResultsError(
        f"{device} can't be trained on with PyTorch {torch.__version__} and driver {device.driver}: {first}.{more} The "
        f"model would learn less than it should, without an error. {_advice(first.check)} "
        f"`yolo-xpu doctor --numerics` compares all operators anew, {SELF_CHECK.key}='full' before a training, too; "
        f"{SELF_CHECK.key}=False trains all the same.",
        device=str(device),
        findings=wrong,
    )
