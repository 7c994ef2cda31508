"""Rows for the command line: `yolo train … trainer=xpu xpu_pin_memory=False`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .rows import Row

__all__ = ["ROWS"]


def _check_dict_alignment(run: None, original: Callable[..., Any]) -> Callable[..., Any]:
    def check_dict_alignment(base: dict[str, Any], custom: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Check a command line's arguments without ours, which the model's methods take and check themselves."""
        if "copy-cfg" in base:  # the command line's own keys, rather than a configuration's
            custom = {k: v for k, v in custom.items() if v == "" or not (k == "trainer" or k.startswith("xpu_"))}
        return original(base, custom, *args, **kwargs)

    return check_dict_alignment


ROWS = [
    Row(
        target="ultralytics.cfg:check_dict_alignment",
        why="`yolo` refuses `trainer=` and every `xpu_*` option on its command line",
        source="ultralytics/cfg/__init__.py, entrypoint",
        needed=lambda run, original: True,
        replacement=_check_dict_alignment,
    )
]
