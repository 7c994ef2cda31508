"""`python -m yolo_xpu_trainer` is `yolo-xpu`."""

import sys

from .commands import main

if __name__ == "__main__":  # data-loading workers that are spawned import this module too
    sys.exit(main())
