"""Which folder a run would have, asked without making it, as Ultralytics 8.4.0 to 8.4.20 or so does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .patches import applied, patch

__all__ = ["folder_of"]

_ASKING = threading.Lock()


@patch(
    "ultralytics.utils.files:increment_path",
    why="8.4.0 makes the folder when it is asked for one, so that the run itself would take the next number",
)
def increment_path(original: Callable[..., Any], path: Any, *args: Any, mkdir: bool = False, **kwargs: Any) -> Any:
    """Return the path that is free, and make nothing."""
    exist_ok_and_sep = args[:2]
    return original(path, *exist_ok_and_sep, mkdir=False, **kwargs)


def folder_of(args: Any) -> Path:
    """Return the folder that a run would have.

    Args:
        args: The arguments of the run.
    """
    from ultralytics.cfg import get_save_dir

    with _ASKING, applied([increment_path], None):
        return Path(get_save_dir(args))
