"""Whether a captured model computes what the model computes, found by running both once on the batch at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .capture import Captured, Forward, Weights

__all__ = ["NotGraphedError", "checked"]

# How far results and gradients may be apart, as the root mean square of all differences by that of all values. Kernels
# that add in any order differ by their rounding, and layers amplify it.
_LIMIT = 1e-3
_LIMIT_OF_16_BITS = 0.1


class NotGraphedError(Exception):
    """A model can't be replayed as graphs; the message says why."""


def checked(
    model: torch.nn.Module,
    forward: Forward,
    images: torch.Tensor,
    is_rounded: bool,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Captured:
    """Capture a model's forward and backward, once both were found to compute what the model computes.

    Args:
        model: The model, in training.
        forward: Its forward.
        images: The batch at hand, shaped (images, channels, height, width).
        is_rounded: Whether it computes in 16 bits.
        autocast: Makes the context of a forward that is captured.

    Raises:
        NotGraphedError: They don't.
        Exception: What PyTorch, the driver or the model's code raised.
    """
    with _as_it_was(model, images.device) as begin:
        weights = Weights(model)
        on_host = [value for value in _buffers(model) if value.device.type == "cpu"]
        begun = [value.clone() for value in on_host]
        expected = _computed(forward(images), weights.distinct)
        counters = []
        for value, before in zip(on_host, begun, strict=True):
            if not torch.equal(value, before):
                if not torch.equal(value, before + 1):
                    raise NotGraphedError("its forward changes what is kept on the host")
                counters.append(value)
        expected += [value.clone() for value in _buffers(model)]
        begin()
        captured = Captured(forward, images, weights, counters, autocast)
        begin()
        held = weights.held()
        assert held is not None
        found = _computed(captured(images, held), held)
        distance = _distance(expected, [*found, *_buffers(model)])
    if not distance <= (limit := _LIMIT_OF_16_BITS if is_rounded else _LIMIT):
        raise NotGraphedError(f"a replay differs from the model by {distance:.2g} (relative RMS, limit {limit:g})")
    return captured


def _buffers(model: torch.nn.Module) -> list[torch.Tensor]:
    return list(model.buffers())


@contextmanager
def _as_it_was(model: torch.nn.Module, device: torch.device) -> Iterator[Callable[[], None]]:
    """Put back what a forward changes, running statistics and random numbers: at the end, and when called.

    The stream as well: `torch.xpu.graph` leaves its own where a capture fails to begin.
    """
    buffers = _buffers(model)
    before = [buffer.clone() for buffer in buffers]
    state, stream = torch.xpu.get_rng_state(device), torch.xpu.current_stream(device)

    def begin() -> None:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
        torch.xpu.set_rng_state(state, device)

    try:
        yield begin
    finally:
        torch.xpu.set_stream(stream)
        begin()


def _computed(outputs: Any, weights: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Return a forward's results, and the gradients of half the sum of their squares."""
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    trained = [tensor for tensor in tensors if tensor.requires_grad]
    gradients = torch.autograd.grad(trained, weights, [tensor.detach() for tensor in trained], allow_unused=True)
    return [*(tensor.detach() for tensor in tensors), *gradients]


def _distance(expected: Sequence[torch.Tensor | None], found: Sequence[torch.Tensor | None]) -> float:
    """Return how far tensors are apart: infinity where one is missing or of another kind."""
    if len(expected) != len(found):
        return float("inf")
    off: list[torch.Tensor] = []
    scale: list[torch.Tensor] = []
    for a, b in zip(expected, found, strict=True):
        if a is None and b is None:
            continue
        if a is None or b is None or (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            return float("inf")
        if a.device.type != "cpu":  # counters of the host are put back
            off.append((a.float() - b.float()).square().sum())
            scale.append(a.float().square().sum())
    return float((torch.stack(off).sum() / torch.stack(scale).sum().clamp(min=1e-30)).sqrt().cpu())
