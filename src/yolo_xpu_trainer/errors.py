"""What can go wrong before a run starts, one exception type a cause.

::

    XPUTrainerError
    ├── DeviceError (also a ValueError, as upstream's own device errors are)
    │   ├── UnknownDeviceError      the device string means nothing to us or to Ultralytics
    │   ├── DuplicateDeviceError    a device was named twice
    │   ├── NoSuchXPUError (also a RuntimeError)   the index is not among the XPUs that this process sees
    │   ├── NoXCCLError (also a RuntimeError)      several XPUs were asked for, and this PyTorch trains on one
    │   └── NoXPUError (also a RuntimeError)       an XPU was asked for where there is none
    │       └── WrongBuildError (also an AssertionError)   … because this PyTorch was built without XPU support
    ├── DeviceLostError, NotEnoughMemoryError   see `device_errors.py`
    ├── NotSavedError (also an OSError)   a checkpoint or results.csv can't be written
    ├── WrongResultsError       the XPU computes something wrongly that every training needs
    ├── CollectivesError (also a RuntimeError)   the processes of a run on several XPUs can't compute together
    ├── RankError (also a RuntimeError)          another process of a run on several XPUs failed, or is gone
    ├── WorkerError (also a RuntimeError)        an error of another type ended a process of a run on several XPUs
    ├── RunFolderInUseError     another process trains in the folder that a run would write into
    ├── RunUnderWayError        another thread of this process trains on an XPU
    ├── UnknownTrainerError (also a ValueError)   no trainer of that name is registered for the model's task
    ├── UsageError              a `yolo-xpu` command can't do what was asked
    └── OptionError (also a ValueError)
        ├── UnknownOptionError      no `xpu_*` option has that name
        └── OptionValueError        an `xpu_*` option has an invalid value

Each carries the offending values as attributes and says what was seen, why it matters and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CollectivesError",
    "DeviceError",
    "DuplicateDeviceError",
    "NoSuchXPUError",
    "NoXCCLError",
    "NoXPUError",
    "NotSavedError",
    "OptionError",
    "OptionValueError",
    "Problem",
    "RankError",
    "RunFolderInUseError",
    "RunUnderWayError",
    "UnknownDeviceError",
    "UnknownOptionError",
    "UnknownTrainerError",
    "UsageError",
    "WorkerError",
    "WrongBuildError",
    "WrongResultsError",
    "XPUTrainerError",
]


@dataclass(frozen=True)
class Problem:
    """Why something doesn't work here.

    Attributes:
        seen: What was found.
        remedy: What to do about it.
    """

    seen: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.seen}. {self.remedy}"


class XPUTrainerError(Exception):
    """Anything that this package refuses to go on with.

    Attributes:
        exit_status: That of the `yolo` and `yolo-xpu` commands after it: 2, or what the class says.
    """

    exit_status = 2


class DeviceError(XPUTrainerError, ValueError):
    """A device request that can't be met.

    Attributes:
        requested: What the user asked for, as given.
        seen: A line that describes the XPUs that this process sees.
    """

    def __init__(self, message: str, *, requested: object, seen: str) -> None:
        super().__init__(message)
        self.requested = requested
        self.seen = seen


class UnknownDeviceError(DeviceError):
    """The device string means nothing to this package or to Ultralytics."""


class DuplicateDeviceError(DeviceError):
    """The same device was named more than once."""


class NoSuchXPUError(DeviceError, RuntimeError):
    """An XPU index that this process doesn't see; a RuntimeError, as PyTorch's own is."""

    exit_status = 69  # EX_UNAVAILABLE of sysexits.h


class NoXCCLError(DeviceError, RuntimeError):
    """Several XPUs were asked for, and this PyTorch has no collectives for them; a RuntimeError, as upstream's is."""


class NoXPUError(DeviceError, RuntimeError):
    """An XPU was asked for, and this process sees none; a RuntimeError, as PyTorch's own is."""

    exit_status = 69  # EX_UNAVAILABLE of sysexits.h


class WrongBuildError(NoXPUError, AssertionError):
    """An XPU was asked for, and this PyTorch was built without XPU support; an AssertionError, as PyTorch's own is."""


class NotSavedError(XPUTrainerError, OSError):
    """A checkpoint, or `results.csv`, can't be written; what was there before is whole.

    Attributes:
        path: The file or folder.
        errno: The number of the operating system's error, as of any OSError.
    """

    exit_status = 74  # EX_IOERR of sysexits.h

    def __init__(self, message: str, *, path: str, errno: int | None) -> None:
        super().__init__(message)
        self.path = path
        self.errno = errno


class WrongResultsError(XPUTrainerError, ArithmeticError):
    """An XPU computes something wrongly that every training, or this one, needs.

    Attributes:
        device: The XPU, as `xpu:0 Intel Arc B580 Graphics`.
        findings: What was found wrong, a `yolo_xpu_trainer.numerics.Finding` each.
    """

    exit_status = 70  # EX_SOFTWARE of sysexits.h

    def __init__(self, message: str, *, device: str, findings: Sequence[Any]) -> None:
        super().__init__(message)
        self.device = device
        self.findings = tuple(findings)


class CollectivesError(XPUTrainerError, RuntimeError):
    """The processes of a run on several XPUs can't compute together.

    Attributes:
        rank: That of the process that says so.
    """

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: another try may go on

    def __init__(self, message: str, *, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


class RankError(XPUTrainerError, RuntimeError):
    """Another process of a run on several XPUs failed, or is gone, so that this one can't go on.

    Attributes:
        seen: What is known of it.
    """

    exit_status = 75  # EX_TEMPFAIL of sysexits.h

    def __init__(self, message: str, *, seen: str) -> None:
        super().__init__(message)
        self.seen = seen


class WorkerError(XPUTrainerError, RuntimeError):
    """A process that Ultralytics started for one of a run's XPUs was killed, or ended by an error that isn't ours.

    Attributes:
        seen: The error's type, or the exit status.
    """

    exit_status = 1

    def __init__(self, message: str, *, seen: str) -> None:
        super().__init__(message)
        self.seen = seen


class RunFolderInUseError(XPUTrainerError, RuntimeError):
    """Another process trains in the folder that a run would write into.

    Attributes:
        folder: The folder.
        process: The number of the process.
    """

    def __init__(self, message: str, *, folder: str, process: int) -> None:
        super().__init__(message)
        self.folder = folder
        self.process = process


class RunUnderWayError(XPUTrainerError, RuntimeError):
    """Another thread of this process trains on an XPU, with a precision and options of its own."""


class UnknownTrainerError(XPUTrainerError, ValueError):
    """No trainer of that name is registered for the model's task.

    Attributes:
        name: The name given.
        known: The names that are registered for the task.
    """

    def __init__(self, message: str, *, name: str, known: Sequence[str]) -> None:
        super().__init__(message)
        self.name = name
        self.known = tuple(known)


class UsageError(XPUTrainerError):
    """A `yolo-xpu` command can't do what was asked; the message says what was seen and what to do."""


class OptionError(XPUTrainerError, ValueError):
    """A problem with an `xpu_*` option.

    Attributes:
        name: The option's name, as given.
        value: The value given.
    """

    def __init__(self, message: str, *, name: str, value: object) -> None:
        super().__init__(message)
        self.name = name
        self.value = value


class UnknownOptionError(OptionError):
    """No `xpu_*` option has that name.

    Attributes:
        suggestions: The nearest names that do exist, best first.
    """

    def __init__(self, message: str, *, name: str, value: object, suggestions: Sequence[str]) -> None:
        super().__init__(message, name=name, value=value)
        self.suggestions = tuple(suggestions)


class OptionValueError(OptionError):
    """An `xpu_*` option has an invalid value."""
