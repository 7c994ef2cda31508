"""Child processes get what was decided from their own environment; their errors of ours are raised by their parent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import device_errors, devices, errors
from ..errors import WorkerError, XPUTrainerError
from ..patches import Patch, like
from ..ranks import CHILD_VARIABLE

__all__ = ["environment_patch", "hand_up", "trainings_patch"]

_ERRORS_VARIABLE = "YOLO_XPU_ERRORS"  # the directory into which a child process writes the error that ends it


def environment_patch(module: str, environment: Mapping[str, str], why: str, *, scripts_first: bool = False) -> Patch:
    """Return a patch that adds variables to the environment of every child process that a module starts.

    Args:
        module: The module, which calls `subprocess.run`.
        environment: The variables to add.
        why: What goes wrong without them.
        scripts_first: Whether commands are those of this Python's environment. Early 8.3 releases start trainings by
            the name `yolo`, which may be of another environment, or nowhere on the path.
    """

    def stand_in(run: Any, original: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> Any:
            with tempfile.TemporaryDirectory(prefix="yolo-xpu-") as directory:
                more = {**environment, _ERRORS_VARIABLE: directory}
                if environment:
                    more[CHILD_VARIABLE] = "1"
                if scripts_first:
                    path = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
                    more["PATH"] = os.pathsep.join(path)
                kwargs["env"] = {**os.environ, **(kwargs.get("env") or {}), **more}
                try:
                    return subprocess.run(*args, **kwargs)
                except subprocess.CalledProcessError as ended:
                    if error := _handed_up(Path(directory)):
                        raise error from ended
                    if scripts_first:  # a search says itself which of its trainings failed
                        raise
                    raise WorkerError(
                        "A process of the run ended without telling this one why. A traceback above is the reason; "
                        "without one it was killed, often by the system because memory ran out, or crashed. torchrun's "
                        "report above names its rank and its signal or exit status.",
                        seen=f"exit status {ended.returncode}",
                    ) from ended

        return like(original, run=launch)

    return Patch(
        f"{module}:subprocess",
        why,
        stand_in,
        needed=lambda original: bool(environment) or (scripts_first and devices.may_be_any()),
        everywhere=False,
        optional=True,
    )


def trainings_patch(module: str, environment: Mapping[str, str]) -> Patch:
    """Return a patch that tells the trainings which a module starts, a `yolo train` each, what was asked for."""
    return environment_patch(
        module, environment, "its child processes would not know the trainer and options asked for", scripts_first=True
    )


def hand_up(error: XPUTrainerError) -> None:
    """Leave an error that ends this process to its parent, if that asked for it.

    A worker that its own error ends takes the others with it, whose errors only say that it is gone.
    """
    directory = os.environ.get(_ERRORS_VARIABLE)
    if not directory:
        return
    simple = {name: value for name, value in vars(error).items() if isinstance(value, (str, int, float, type(None)))}
    said = {"class": type(error).__name__, "text": str(error), "attributes": simple}
    with contextlib.suppress(OSError):
        Path(directory, f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(said), encoding="utf-8")


def _handed_up(directory: Path) -> XPUTrainerError | None:
    """Return the first error that a child process has left, as one of this process's own."""
    for path in sorted(directory.glob("rank*.json"), key=lambda path: path.stat().st_mtime_ns):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(path.read_text(encoding="utf-8"))
            name = said["class"]
            kind: Any = getattr(device_errors, name, None) or getattr(errors, name, XPUTrainerError)
            error: XPUTrainerError = kind.__new__(kind)
            error.args = (f"{said['text']} (rank {path.stem.removeprefix('rank')})",)
            vars(error).update(said["attributes"])
            return error
    return None
