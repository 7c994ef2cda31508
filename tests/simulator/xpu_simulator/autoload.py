"""The `torch.backends` entry point: runs at the end of `import torch`, in every process."""

from __future__ import annotations

import os

PROFILE_VARIABLE = "XPU_SIMULATOR"


def load() -> None:
    """Activate the profile that `XPU_SIMULATOR` names; do nothing without it."""
    profile = os.environ.get(PROFILE_VARIABLE)
    if not profile:
        return
    # torch registers Triton kernels of its own for xpu a few lines after this, and they find no driver here.
    os.environ.setdefault("TORCH_DISABLE_NATIVE_JIT", "1")
    from .activation import activate

    activate(profile)
