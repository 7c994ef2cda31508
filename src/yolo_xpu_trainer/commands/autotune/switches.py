"""The switches that are tried: values of arguments with which the same model is trained."""

from __future__ import annotations

import os
from collections.abc import Collection

from ...devices import DeviceInfo
from ...errors import UsageError
from ...policies import compile
from ..measurement.cases import Switch
from ..measurement.switches import switches_of_options

__all__ = ["Switch", "find_switches", "only"]

_WORKERS = (2, 4, 16)  # beside Ultralytics' default of 8


def find_switches(
    device: DeviceInfo, *, precisions: Collection[str] = (), workers: bool = False, compiled: bool = False
) -> tuple[list[Switch], list[str]]:
    """Find what can be tried on a device.

    Args:
        device: The device.
        precisions: The precisions to try, beside the one that a run has by default.
        workers: Whether to try numbers of the loader's workers.
        compiled: Whether to try `torch.compile`.

    Returns:
        The switches, and a note on each that isn't tried.
    """
    found, notes = switches_of_options(device)
    found.append(Switch("deterministic", False))
    found += [Switch("amp", name) for name in precisions]
    if workers:
        found += [Switch("workers", n) for n in _WORKERS if n <= (os.cpu_count() or 1)]
    else:
        notes.append("workers isn't tried: how many are needed depends on the images; --data tries it on yours.")
    if compiled and (problem := compile.problem(device.index)):
        notes.append(f"compile isn't tried, because torch.compile doesn't work on this device: {problem}")
    elif compiled:
        found.append(Switch("compile", True))
    return found, notes


def only(
    keywords: Collection[str], switches: Collection[Switch], notes: Collection[str]
) -> tuple[list[Switch], list[str]]:
    """Leave out the switches that aren't named, and the notes on others.

    Raises:
        UsageError: A keyword is of none of them.
    """
    known = dict.fromkeys(switch.keyword for switch in switches)
    about = [note for note in notes if note.partition(" ")[0] in keywords]
    if unknown := [keyword for keyword in keywords if keyword not in known]:
        raise UsageError(
            f"--only names {', '.join(unknown)}, which is not tried here.{''.join(f' {note}' for note in about)} "
            f"Choose among {', '.join(known)}."
        )
    return [switch for switch in switches if switch.keyword in keywords], about
