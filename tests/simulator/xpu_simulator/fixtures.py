"""The pytest plugin: the fixture `xpu`, on the simulated device or on a real one.

With `xpu_simulator = true` in the ini file the simulated device is there from the session's start, which is before any
test's backward pass. torch is imported then, or by the first test that asks for `xpu`, but not with the plugin.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

INI_OPTION = "xpu_simulator"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini option."""
    parser.addini(INI_OPTION, "Activate the simulated XPU at the session's start.", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    for marker in (
        "xpu_profile(name): which GPU the fixture `xpu` simulates (default: arc-b580)",
        "xpu_quirks(*names): which wrong results it gives (default: none, see quirks.py)",
    ):
        config.addinivalue_line("markers", marker)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Activate the simulator, unless this torch has XPUs of its own.

    The autograd engine makes a queue for each device that is there at a process's first backward, none later, so the
    profile with the most devices is there for that one.
    """
    if session.config.getini(INI_OPTION) and not _has_real_xpu():
        import torch

        from .activation import DEFAULT_PROFILE, activate, use_profile
        from .profiles import PROFILES

        activate(DEFAULT_PROFILE)
        with use_profile(max(PROFILES, key=lambda name: PROFILES[name].devices)):
            torch.autograd.backward(torch.ones(1, requires_grad=True).sum())


@pytest.fixture
def xpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """An XPU: the first device of the profile that `@pytest.mark.xpu_profile` names, fresh for every test.

    With a torch that has real XPUs it is the first of those, and tests not marked `xpu_hardware` are skipped.
    """
    if _has_real_xpu():
        yield from _real_device(request)
        return
    from . import counters, faults, quirks
    from .activation import DEFAULT_PROFILE, activate, use_profile

    ordered = [name for each in request.node.iter_markers("xpu_quirks") for name in each.args]
    marker = request.node.get_closest_marker("xpu_profile")
    activate()
    with use_profile(marker.args[0] if marker else DEFAULT_PROFILE), quirks.ordered(*ordered):
        import torch

        faults.clear()
        counters.reset()
        try:
            yield torch.device("xpu", 0)
        finally:
            faults.clear()
            counters.reset()


def _has_real_xpu() -> bool:
    import torch

    from .activation import is_active

    return bool(torch._C._has_xpu) and not is_active()


def _real_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    import torch

    if request.node.get_closest_marker("xpu_hardware") is None:
        pytest.skip("needs the simulated XPU, and this PyTorch build has real ones")
    if not torch.xpu.is_available():
        pytest.skip("this PyTorch build supports XPUs, but there is none")
    yield torch.device("xpu", 0)
    torch.xpu.synchronize()
    torch.xpu.empty_cache()
