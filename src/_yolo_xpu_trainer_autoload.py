"""PyTorch calls this at the end of `import torch`: it waits until Ultralytics is imported, and returns.

PyTorch (2.5 and newer) calls every entry point of the group `torch.backends` in every process: the `yolo` command,
notebooks, DDP workers, the tuner's subprocesses. An exception here would break `import torch`, so none gets out, and
time spent here is spent by programs that never train a YOLO, so nothing is imported. It stands beside the package, not
in it, for importing the package acts too, whether or not this is switched off.
"""

import os
import sys

_OFF = {"0", "false", "no", "off"}


class _UltralyticsIsWanted:
    """A finder that finds nothing: it acts when Ultralytics is first looked for, and is gone then."""

    acted = False

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name == "ultralytics" and not self.acted:
            self.acted = True
            _forget()
            _activate()


def load() -> None:
    """Let this package act in Ultralytics, unless `YOLO_XPU_AUTOLOAD=0`."""
    if os.environ.get("YOLO_XPU_AUTOLOAD", "").strip().lower() not in _OFF:
        act_on_import()


def act_on_import() -> None:
    """Act now where Ultralytics is imported, or being imported, else when it is."""
    _forget()
    if "ultralytics" in sys.modules:
        _activate()
    else:
        sys.meta_path.insert(0, _UltralyticsIsWanted())


def _forget() -> None:
    # A new list: the import that is asking goes on through the old one, from which nothing may be missing.
    sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, _UltralyticsIsWanted)]


def _activate() -> None:
    try:
        from yolo_xpu_trainer.activation import process_patches
        from yolo_xpu_trainer.policies import kernel_cache

        kernel_cache.keep()
        process_patches().apply()
    except Exception as error:
        import warnings

        warnings.warn(f"yolo-xpu-trainer is disabled: importing it failed: {error!r}", stacklevel=2)
