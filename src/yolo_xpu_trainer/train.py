"""`yolo train` as one of several processes, on one machine or several, that a launcher starts.

::

    torchrun --nnodes=2 --nproc-per-node=2 … -m yolo_xpu_trainer.train data=coco8.yaml model=yolo11n.pt device=xpu
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .errors import UsageError
from .launchers import apply_to

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, as the process that the launcher says this is, or alone.

    Args:
        argv: Arguments of `yolo train`, by default the process's.

    Returns:
        The exit status.
    """
    try:
        apply_to(os.environ)
    except UsageError as error:
        print(f"yolo_xpu_trainer.train: error: {error}", file=sys.stderr)
        return error.exit_status
    sys.argv[:] = ["yolo", "train", *(sys.argv[1:] if argv is None else argv)]
    from ultralytics.cfg import entrypoint  # Ultralytics reads the variables and the arguments as it is imported

    entrypoint()
    return 0


if __name__ == "__main__":  # data-loading workers that are spawned import this module too
    sys.exit(main())
