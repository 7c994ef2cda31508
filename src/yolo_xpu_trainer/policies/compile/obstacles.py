"""Why `torch.compile` doesn't work on an XPU: a tiny function is compiled there, in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from typing import Any

import torch

from ...devices import XPU_WHEELS
from ...errors import Problem
from ...versions import torch_release

__all__ = ["problem", "shortened", "text_of", "trial"]

SECONDS = 180
"""How long compiling a tiny function may take. The first one starts Triton and the driver's own compiler, too."""

_COMPILER = (
    "Run Python from the prompt of Visual Studio's C++ tools, or call vcvars64.bat there first."
    if os.name == "nt"
    else "Install a C++ compiler, `sudo apt install g++`, or name one in the variables CC and CXX."
)
_REINSTALL = f"`pip uninstall -y triton triton-xpu pytorch-triton-xpu`, then `{XPU_WHEELS} --force-reinstall`"

# What the texts of errors ask for; the first that is found counts.
_REMEDIES = [
    # intel-xpu-backend-for-triton#2548, and #3064 for Windows, whose driver brings no headers
    (
        r"level_zero|ze_api\.h",
        "Install Level Zero's headers, such as `sudo apt install libze-dev`, or a newer PyTorch.",
    ),
    (r"Python\.h", "Install the headers of this Python, such as `sudo apt install python3-dev`."),
    # Triton's "Failed to find C compiler. Please specify via CC …", Inductor's "No working C++ compiler found in …",
    # and "Compiler: cl is not found." of Windows
    (r"C(\+\+)? compiler|Compiler: .* not found|InvalidCxxCompiler", _COMPILER),
    (r"sycl", "Install what PyTorch's XPU build brings again: " + _REINSTALL + "."),
]


@functools.cache
def problem(index: int) -> Problem | None:
    """Say why `torch.compile` doesn't work on an XPU, or return None where it does.

    A tiny function is compiled there, with its gradient: nothing less finds a Triton that doesn't fit the driver, or a
    compiler without headers. Asked again, the answer is the same for the life of the process.

    Args:
        index: The XPU's index.
    """
    return _old_on_windows() or _without_triton() or trial(torch.device("xpu", index))


def _old_on_windows() -> Problem | None:
    """Look for a PyTorch that doesn't compile for XPUs on Windows, which it does since 2.7."""
    if os.name != "nt" or torch_release() >= (2, 7):
        return None
    seen = f"PyTorch {torch.__version__} compiles nothing for an XPU on Windows; it does since 2.7"
    return Problem(seen, f"Install a newer one: `{XPU_WHEELS} --upgrade`.")


def _without_triton() -> Problem | None:
    """Look for a Triton that is missing, broken, or made for other devices, as another package's `triton` is."""
    try:
        import triton
        from triton.backends import backends
    except Exception as error:  # an AssertionError where it finds no SYCL (intel-xpu-backend-for-triton#2027)
        return Problem(
            f"Triton can't be imported ({shortened(text_of(error))})", f"Install it with PyTorch: {_REINSTALL}."
        )
    if "intel" in backends:
        return None
    made_for = ", ".join(sorted(backends)) or "no device"
    seen = f"Triton {triton.__version__} is made for other devices ({made_for})"
    return Problem(seen, f"Install the one that PyTorch's XPU build brings: {_REINSTALL}.")


# What the process of a trial runs; PyTorch prints on either stream, so the answer stands behind a mark.
_MARK = "The trial ended with: "
_CHILD = f"from {__name__} import report; report()"


def trial(device: torch.device, seconds: float = SECONDS) -> Problem | None:
    """Compile a tiny function and its gradient for a device in a process of its own, and run both.

    That process may crash, as with a Triton that doesn't fit (pytorch#159974, #189341), or hang.

    Args:
        device: The device.
        seconds: How long it may take.

    Returns:
        What went wrong, None where nothing did.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _CHILD, str(device)]
    with tempfile.TemporaryFile() as output:  # a pipe would stay open for as long as any process that it starts lives
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        output.seek(0)
        said = output.read().decode(errors="replace")
    if status is None:
        seen = f"compiling a tiny function took longer than {seconds:g} seconds"
        return Problem(seen, "Try again when the machine is less busy.")
    if status == 0:
        return None
    _, marked, error = said.rpartition(_MARK)
    return _explained(error) if marked else _crashed(status, said)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and what compilers it started."""
    if os.name != "nt":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def report() -> None:
    """Try, in the process of a trial, the device that its argument names; say what went wrong, and exit with 1."""
    try:
        _compile_and_run(torch.device(sys.argv[1]))
    except Exception as error:  # of whatever type Dynamo, Inductor, Triton or a driver raises
        print(f"\n{_MARK}{text_of(error)}")
        raise SystemExit(1) from None


def _explained(error: str) -> Problem:
    """Say what an error, its type and text, means."""
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, error, re.IGNORECASE)), None)
    return Problem(
        f"compiling a tiny function failed ({shortened(error)})",
        remedy or "TORCHDYNAMO_VERBOSE=1 in the environment shows the whole error.",
    )


def _crashed(status: int, said: str) -> Problem:
    """Say that the process ended without an answer."""
    try:
        how = f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        how = f"ended with exit status {status}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = f" Its last line: {lines[-1][:200]}" if lines else ""
    return Problem(
        f"the process that compiled a tiny function {how}, as it is where Triton doesn't fit PyTorch or the driver",
        f"Install what PyTorch's XPU build brings again: {_REINSTALL}.{last}",
    )


def _compile_and_run(device: torch.device) -> None:
    """Compile for a device, in this process.

    Raises:
        ArithmeticError: It gave wrong numbers.
        Exception: It failed.
    """
    import torch._inductor.config

    factor = random.SystemRandom().randint(2, 8000)  # none that is in a cache; sums up to 2**24 are exact in float32

    def tiny(x: torch.Tensor) -> torch.Tensor:
        return (x * factor + 1).relu().sum()

    config: Any = torch._inductor.config
    with config.patch(compile_threads=1), torch.inference_mode(False), torch.enable_grad():
        x: Any = torch.arange(64.0, device=device, requires_grad=True)
        compiled: Any = torch.compile(tiny, backend="inductor")
        total = compiled(x)
        total.backward()
        if (total.item(), set(x.grad.tolist())) != (factor * 64 * 63 / 2 + 64, {factor}):
            raise ArithmeticError("it gave wrong numbers")


def text_of(error: Exception) -> str:
    """Return an error's type and text."""
    return f"{type(error).__name__}: {error}"


def shortened(error: str) -> str:
    """Return an error's type and the first line of its text that says something."""
    kind, _, text = error.partition(": ")
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not re.fullmatch(r"backend=.* raised:", line)]
    return ": ".join([kind, *said[:1]])[:200]
