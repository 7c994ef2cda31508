"""A check of one operator, and what came out of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ..device_errors import is_lost, is_out_of_memory

__all__ = ["Check", "Finding"]

Unit = Literal["relative", "share", "times"]


def _always(trainer: Any) -> bool:
    return True


@dataclass(frozen=True)
class Check:
    """Whether a device computes an operator as the CPU does.

    Attributes:
        operator: What is computed, such as "convolution 3×3, channels_last".
        dtype: In which dtype.
        difference: Computes it on a device and returns how far that is from the CPU; `compared` makes such a function.
        limit: The largest difference that is right. 0 where every number must be the same.
        unit: What the difference is: "relative" to the largest number, the "share" of numbers that differ, or how many
            "times" as long something takes.
        instead: What a run does where it is wrong, as the beginning of a sentence. "" where no run can do without it.
        advice: What is known about it being wrong, and what to do, as sentences.
        needed: Asked of a trainer, which has its arguments and its class only, whether its run may meet it.
        whose: Which trainings meet it, such as "Trainings of RT-DETR". "" where any may.
    """

    operator: str
    dtype: torch.dtype
    difference: Callable[[torch.device], float]
    limit: float
    unit: Unit = "relative"
    instead: str = ""
    advice: str = ""
    needed: Callable[[Any], bool] = _always
    whose: str = ""

    @property
    def key(self) -> str:
        """What the finding is kept under."""
        return f"{self.operator} {self.dtype_name}"

    @property
    def dtype_name(self) -> str:
        """The dtype without "torch."."""
        return str(self.dtype).removeprefix("torch.")

    def made_on(self, device: torch.device) -> Finding:
        """Make the check.

        Raises:
            torch.OutOfMemoryError: The device has no memory for it.
            RuntimeError: The device is lost.
        """
        try:
            return Finding(self.difference(device), check=self)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            if is_lost(error) or is_out_of_memory(error):  # which says nothing of an operator
                raise
            text = str(error) or type(error).__name__
            return Finding(math.inf, text.strip().splitlines()[0][:200], check=self)


@dataclass(frozen=True)
class Finding:
    """What came out of a check.

    Attributes:
        difference: How far the device is from the CPU; infinite where there is no number.
        error: What the device answered instead of numbers, or "".
        check: The check, None in what is read from a disk.
    """

    difference: float
    error: str = ""
    check: Check | None = None

    def of(self, check: Check) -> Finding:
        """Return the same with its check."""
        return replace(self, check=check)

    @property
    def right(self) -> bool:
        """Whether the device computes what it should."""
        return self.check is not None and self.difference <= self.check.limit  # which NaN isn't

    @property
    def amount(self) -> str:
        """The difference with its unit, for a table."""
        unit = self.check.unit if self.check else "relative"
        if self.error:
            return "error"
        if unit == "share":
            return "0" if not self.difference else f"{self.difference:.2%} of the numbers"
        return f"{self.difference:.1f} × the time" if unit == "times" else f"{self.difference:.1e}"

    def __str__(self) -> str:
        check = self.check
        assert check is not None
        name = f"{check.operator} ({check.dtype_name})"
        if self.error:
            return f"{name} fails with {self.error!r}"
        if check.unit == "times":
            return f"{name} takes {self.difference:.1f} × as long (limit {check.limit:g} ×)"
        if check.unit == "share":
            return f"{name} differs from the CPU's in {self.difference:.2g} of its numbers"
        return f"{name} differs from the CPU's by {self.difference:.2g} of its largest number (limit {check.limit:g})"
