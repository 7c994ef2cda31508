"""The `yolo` command takes a trainer by name and the `xpu_*` options: `yolo train … trainer=xpu xpu_prefetch=0`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..patches import patch

__all__ = ["PATCHES"]


@patch("ultralytics.cfg:check_dict_alignment", why="`yolo` refuses `trainer=` and every `xpu_*` option")
def check_dict_alignment(
    original: Callable[..., Any], base: dict[str, Any], custom: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Check a command line's arguments without ours, which the model's methods take and check themselves."""
    if "copy-cfg" in base:  # the command line's own keys, rather than a configuration's
        custom = {k: v for k, v in custom.items() if v == "" or not (k == "trainer" or k.startswith("xpu_"))}
    return original(base, custom, *args, **kwargs)


PATCHES = [check_dict_alignment]
