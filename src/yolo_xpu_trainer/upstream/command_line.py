"""The `yolo` command takes a trainer by name and the `xpu_*` options, and ends with one line where we refuse to go on.

`yolo train … trainer=xpu xpu_prefetch=0`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ..device_errors import DeviceLostError, is_lost
from ..errors import XPUTrainerError
from ..options import TRUE_WORDS
from ..patches import patch

__all__ = ["PATCHES"]

_VERBOSE = "YOLO_VERBOSE"  # Ultralytics' own variable; unset, it is as verbose as if it were true


@patch("ultralytics.cfg:entrypoint", why="an error of this package would end the `yolo` command with a traceback")
def entrypoint(original: Callable[..., Any], debug: str = "") -> Any:
    """Run the `yolo` command; an error of ours ends it with one line, or its traceback, and the error's exit status.

    Python code that hands in a command line gets the exception.
    """
    if debug:
        return original(debug)
    try:
        return original()
    except XPUTrainerError as error:
        if os.environ.get(_VERBOSE, "").strip().lower() in TRUE_WORDS:
            traceback.print_exc()
        else:
            print(f"yolo: error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except RuntimeError as error:  # outside of a run, which says more
        if not is_lost(error):
            raise
        traceback.print_exc()
        raise SystemExit(DeviceLostError.exit_status) from None


@patch("ultralytics.cfg:check_dict_alignment", why="`yolo` refuses `trainer=` and every `xpu_*` option")
def check_dict_alignment(
    original: Callable[..., Any], base: dict[str, Any], custom: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Check a command line's arguments without ours, which the model's methods take and check themselves."""
    if "copy-cfg" in base:  # the command line's own keys, rather than a configuration's
        custom = {k: v for k, v in custom.items() if v == "" or not (k == "trainer" or k.startswith("xpu_"))}
    return original(base, custom, *args, **kwargs)


PATCHES = [entrypoint, check_dict_alignment]
