"""Child processes get what was decided from their own environment; this process's stays as it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from ..patches import Patch, like

__all__ = ["CHILD_VARIABLE", "environment_patch"]

CHILD_VARIABLE = "YOLO_XPU_CHILD"  # says that the other variables were handed down, and say more than `amp=True`


def environment_patch(module: str, environment: Mapping[str, str], why: str) -> Patch:
    """Return a patch that adds variables to the environment of every child process that a module starts.

    Args:
        module: The module, which calls `subprocess.run`.
        environment: The variables to add.
        why: What goes wrong without them.
    """

    def stand_in(run: Any, original: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> Any:
            kwargs["env"] = {**os.environ, **(kwargs.get("env") or {}), **environment, CHILD_VARIABLE: "1"}
            return subprocess.run(*args, **kwargs)

        return like(original, run=launch)

    return Patch(
        f"{module}:subprocess",
        why,
        stand_in,
        needed=lambda original: bool(environment),
        everywhere=False,
        optional=True,
    )
