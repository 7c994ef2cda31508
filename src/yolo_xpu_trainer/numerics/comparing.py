"""Compute the same on a device and on the CPU, and measure how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..host_kernels import computed_on_the_host, missing

__all__ = ["Given", "as_usual", "compared"]

_REPEATS = 3  # some faults vary: torch-xpu-ops#4312, #4396


class Given:
    """The tensors that a computation is given: the same on every device, and in every computation.

    Args:
        device: Where they are.
        dtype: What floating-point ones are rounded to. On the CPU they are float32 again, so that it computes exactly.
        drawn: What another computation of the same was given, to be given again: drawing takes longer than computing.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, drawn: list[torch.Tensor] | None = None) -> None:
        self.device = device
        self.dtype = dtype
        self.drawn: list[torch.Tensor] = []
        self._again = list(reversed(drawn or ()))
        self._generator = torch.Generator().manual_seed(0)

    def normal(
        self, *shape: int, grad: bool = False, layout: torch.memory_format | None = None, rounded: bool = True
    ) -> torch.Tensor:
        """Return numbers from a normal distribution.

        Args:
            shape: The shape.
            grad: Whether it wants a gradient.
            layout: Its memory format; by default NCHW.
            rounded: Whether it has the dtype; float32 otherwise, as what autocast leaves alone.
        """
        drawn = self._drawn(lambda: torch.randn(shape, generator=self._generator))
        return self.of(drawn, grad, layout, rounded=rounded)

    def of(
        self,
        value: torch.Tensor,
        grad: bool = False,
        layout: torch.memory_format | None = None,
        *,
        rounded: bool = True,
    ) -> torch.Tensor:
        """Return a tensor of the CPU's, of float32 or any integer dtype, on the device."""
        if value.is_floating_point() and rounded:
            value = self.rounded(value)
        if layout is not None:
            value = value.contiguous(memory_format=layout)
        there = self._there(value)
        return there.requires_grad_() if grad else there

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        """Return floating-point numbers in the dtype; on the CPU in float32, after they had it."""
        value = value.to(self.dtype)
        return value.float() if self.device.type == "cpu" else value

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Return integers from 0 to below `high`."""
        return self.of(self._drawn(lambda: torch.randint(high, shape, generator=self._generator)))

    def orders(self, rows: int, n: int) -> torch.Tensor:
        """Return `rows` random orders of 0 … n - 1 as float32, in which no number comes twice."""
        drawn = self._drawn(lambda: torch.rand(rows, n, generator=self._generator).argsort(1).float())
        return self._there(drawn)

    def mask(self, true: int, *shape: int) -> torch.Tensor:
        """Return a mask with so many true elements."""

        def draw() -> torch.Tensor:
            n = math.prod(shape)
            flat = torch.zeros(n, dtype=torch.bool)
            flat[torch.randperm(n, generator=self._generator)[:true]] = True
            return flat.view(shape)

        return self._there(self._drawn(draw))

    def _drawn(self, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        drawn = self._again.pop() if self._again else draw()
        self.drawn.append(drawn)
        return drawn

    def _there(self, value: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the device, never the one that was drawn: a computation may change what it is given."""
        return value.clone() if self.device.type == "cpu" else value.to(self.device)

    def with_gradients(self, output: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return an output, and the inputs' gradients for a random one of the output."""
        gradient = self.normal(*output.shape).to(output.dtype)
        return [output, *torch.autograd.grad(output, inputs, gradient)]


def compared(
    compute: Callable[[Given], Iterable[torch.Tensor]], dtype: torch.dtype = torch.float32, *, exact: bool = False
) -> Callable[[torch.device], float]:
    """Return a function that computes on a device, several times, and says how far that is from the CPU.

    Args:
        compute: Computes tensors.
        dtype: The dtype on the device.
        exact: Whether to tell the share of numbers that differ, rather than the largest relative difference.
    """

    def difference(device: torch.device) -> float:
        given = Given(torch.device("cpu"), dtype)
        expected = [value.detach() for value in compute(given)]
        worst = 0.0
        for _ in range(_REPEATS):
            found = [value.detach().cpu() for value in compute(Given(device, dtype, given.drawn))]
            worst = max(worst, *map(_share if exact else _relative, found, expected))
        return worst

    return difference


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    if not expected.is_floating_point():
        return _share(found, expected)
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    distance = (found.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1e-30)
    return float(distance.nan_to_num(nan=math.inf, posinf=math.inf))


def _share(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the share of numbers that differ; of another shape, of the longer one's."""
    if found.shape != expected.shape:
        return max(abs(found.numel() - expected.numel()) / max(found.numel(), expected.numel(), 1), 1e-9)
    return float((found != expected).double().mean()) if expected.numel() else 0.0


@contextmanager
def as_usual() -> Iterator[None]:
    """Compute as training does, whatever the process has set: with gradients, in IEEE float32, without autocast.

    Tensors for which no device or dtype is named are float32 ones of the CPU.
    """
    switches: Any = torch.backends.mkldnn
    tf32 = getattr(switches, "allow_tf32", None)
    deterministic, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(computed_on_the_host(missing()))
        if (dtype := torch.get_default_dtype()) is not torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        for kind in ("cpu", "xpu"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if deterministic:
            stack.callback(torch.use_deterministic_algorithms, True, warn_only=warns)
            torch.use_deterministic_algorithms(False)
        if tf32:
            stack.callback(setattr, switches, "allow_tf32", tf32)
            switches.allow_tf32 = False
        yield
