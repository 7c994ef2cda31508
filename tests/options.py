"""The options of a run, where a test names those that it gave."""

from __future__ import annotations

from typing import Any

from yolo_xpu_trainer.options import Options
from yolo_xpu_trainer.plugins import declared_options


def options(**given: Any) -> Options:
    """Return every option's value: what is given by name, else the environment's or the default."""
    return Options.resolve(declared_options(), given)
