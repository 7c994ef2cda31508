"""The commands and pages that messages name, in one place and without PyTorch, whose import may be what fails."""

from __future__ import annotations

__all__ = [
    "CLIENT_DRIVERS",
    "HARDWARE",
    "OTHER_RELEASES",
    "PYTORCH_PACKAGES",
    "WINDOWS_DRIVER",
    "XPU_INDEX",
    "XPU_WHEELS",
]

XPU_INDEX = "https://download.pytorch.org/whl/xpu"
XPU_WHEELS = f"pip install torch torchvision --index-url {XPU_INDEX}"
CLIENT_DRIVERS = "https://dgpu-docs.intel.com/driver/client/overview.html"
OTHER_RELEASES = f"`{XPU_WHEELS} --upgrade` installs another PyTorch; drivers are at {CLIENT_DRIVERS}."
WINDOWS_DRIVER = "https://www.intel.com/content/www/us/en/support/detect.html"  # the Driver & Support Assistant
HARDWARE = "https://docs.pytorch.org/docs/2.15/notes/get_start_xpu.html"

PYTORCH_PACKAGES = "torch torchvision torchaudio triton triton-xpu pytorch-triton-xpu"
"""What an installation of PyTorch leaves behind, for `pip uninstall`."""
