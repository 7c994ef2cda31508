"""A model's forward and backward: captured as two graphs over memory of their own, replayed by an autograd function.

`torch.xpu.make_graphed_callables` does the same for a module whose parameters are its weights, as long as gradients
aren't accumulated: it hands out the graph's own memory as `.grad`, which the next replay overwrites. Here weights may
be tensors that modules hold in their place, such as rounded ones, and gradients of parameters are copied out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from ...devices import empty_cache

__all__ = ["Captured", "Weights", "laid_out"]

_GONE = (
    "Trying to backward a second time, or after another forward, through a model that is replayed as graphs: what its "
    "forward kept is overwritten. Set xpu_graphs=False."
)
Forward = Callable[[torch.Tensor], Any]


def laid_out(images: torch.Tensor) -> tuple[Any, ...]:
    """Return what a graph's input must have in common with the one of its capture."""
    return images.shape, images.stride(), images.dtype, images.device, images.requires_grad


class Weights:
    """The tensors that a model's modules hold as their trained weights, and all others that a graph reads by address.

    Args:
        model: The model, as it is held while its forward is computed.

    Attributes:
        distinct: The trained ones; one that several modules hold is there once.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._places: list[tuple[torch.nn.Module, str, int]] = []
        self._fixed: list[tuple[dict[str, Any], str, torch.Tensor, int, bool]] = []
        self.distinct: list[torch.Tensor] = []
        index: dict[int, int] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                held = vars(module).get(name, parameter)
                if held.requires_grad:
                    if id(held) not in index:
                        index[id(held)] = len(self.distinct)
                        self.distinct.append(held)
                    self._places.append((module, name, index[id(held)]))
                self._fix(module._parameters, name, parameter)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    self._fix(module._buffers, name, buffer)
        self._is_leaf = [weight.is_leaf for weight in self.distinct]
        firsts = {at: (module, name) for module, name, at in reversed(self._places)}
        self._found_at = [firsts[at] for at in range(len(self.distinct))]  # again in every step

    def _fix(self, holder: Any, name: str, tensor: torch.Tensor) -> None:
        self._fixed.append((holder, name, tensor, tensor.data_ptr(), tensor.requires_grad))

    def are_unchanged(self) -> bool:
        """Whether all that a graph reads by address is where it was, and trained where it was."""
        return all(
            holder.get(name) is tensor and tensor.data_ptr() == pointer and tensor.requires_grad is trained
            for holder, name, tensor, pointer, trained in self._fixed
        )

    def held(self) -> list[torch.Tensor] | None:
        """Return the trained weights as modules hold them by now; None where they are held in another way."""
        found: list[Any] = [vars(module).get(name, module._parameters[name]) for module, name in self._found_at]
        if not all(weight.is_leaf is leaf for weight, leaf in zip(found, self._is_leaf, strict=True)):
            return None
        return found

    @contextmanager
    def replaced(self, stand_ins: Sequence[torch.Tensor]) -> Iterator[None]:
        """Let the modules hold other tensors instead of these weights, in attributes that come before parameters."""
        before = [(vars(module), name, vars(module).get(name)) for module, name, _ in self._places]
        for module, name, at in self._places:
            vars(module)[name] = stand_ins[at]
        try:
            yield
        finally:
            for held, name, value in before:
                del held[name]
                if value is not None:
                    held[name] = value


class Captured:
    """A model's forward and backward on images of one layout.

    Args:
        forward: The model's forward.
        images: Images of that layout, shaped (images, channels, height, width).
        weights: The model's weights.
        counters: Tensors of the host that each forward adds one to.
        autocast: Makes the context of the forward's autocast, which may not keep rounded weights from one use to the
            next.

    Attributes:
        bytes: The device's memory that the graphs keep.
    """

    def __init__(
        self,
        forward: Forward,
        images: torch.Tensor,
        weights: Weights,
        counters: list[torch.Tensor],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        index = images.device.index
        empty_cache(index)
        before = torch.xpu.memory_reserved(index)
        self.layout = laid_out(images)
        self.weights = weights
        self._counters = counters
        self._waiting: object = None  # the turn of a forward whose backward is to come
        self._images = torch.zeros_like(images)  # not the images: what isn't copied in is found by the check
        # Leaves of their own: a parameter's AccumulateGrad remembers the stream of its first use, not the capture's
        self._leaves = [
            (weight.detach() if weight.is_leaf else torch.zeros_like(weight)).requires_grad_()
            for weight in weights.distinct
        ]
        self._copied = [i for i, weight in enumerate(weights.distinct) if not weight.is_leaf]
        pool = torch.xpu.graph_pool_handle()
        self._forward, self._backward = torch.xpu.XPUGraph(), torch.xpu.XPUGraph()
        with torch.xpu.graph(self._forward, pool=pool), weights.replaced(self._leaves), autocast():
            outputs = forward(self._images)
        leaves, self._structure = pytree.tree_flatten(outputs)
        self._constants = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        differentiable = [tensor for tensor in tensors if tensor.requires_grad]
        self._gradients_out = [torch.zeros_like(t) if t.requires_grad else None for t in tensors]
        self._are_zero = [True] * len(tensors)
        with torch.xpu.graph(self._backward, pool=pool):
            self._gradients = torch.autograd.grad(
                differentiable, self._leaves, [g for g in self._gradients_out if g is not None], allow_unused=True
            )
        self._tensors = [tensor.detach() for tensor in tensors]
        self._is_tensor = [isinstance(leaf, torch.Tensor) for leaf in leaves]
        self._handed_out = [
            i for i, weight in enumerate(weights.distinct) if weight.is_leaf and self._gradients[i] is not None
        ]
        self.bytes = torch.xpu.memory_reserved(index) - before

    @property
    def is_waiting(self) -> bool:
        """Whether a backward is to come, for which the graphs' memory holds what the forward kept."""
        return self._waiting is not None

    def forget(self) -> None:
        """Expect no backward of what was computed so far."""
        self._waiting = None

    def __call__(self, images: torch.Tensor, held: Sequence[torch.Tensor]) -> Any:
        """Compute the forward.

        Args:
            images: Images, laid out as those of the capture.
            held: The weights, as `Weights.held` returns them.

        Returns:
            What the model's forward returns. Its tensors lie in the graph's memory: the next call overwrites them.
        """
        found = iter(_Replayed.apply(self, images, *held))
        leaves = [
            next(found) if is_tensor else constant
            for is_tensor, constant in zip(self._is_tensor, self._constants, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self._structure)

    def replay_forward(self, turn: object, images: torch.Tensor, held: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Launch the forward, for a backward of the same turn, and return its results in the graph's memory."""
        self._images.copy_(images)
        if self._copied:
            torch._foreach_copy_([self._leaves[i].detach() for i in self._copied], [held[i] for i in self._copied])
        self._forward.replay()
        if self._counters:
            torch._foreach_add_(self._counters, 1)
        self._waiting = turn
        return [tensor.detach() for tensor in self._tensors]

    def without_gradient(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return those of the results that have no gradient."""
        return [tensor for tensor, place in zip(tensors, self._gradients_out, strict=True) if place is None]

    def replay_backward(self, turn: object, given: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Launch the backward, and return the gradients of the weights.

        Raises:
            RuntimeError: What the forward kept isn't there any more.
        """
        if self._waiting is not turn:
            raise RuntimeError(_GONE)
        self._waiting = None
        for i, (place, gradient) in enumerate(zip(self._gradients_out, given, strict=True)):
            if place is None:
                continue
            if gradient is not None:
                place.copy_(gradient)
            elif not self._are_zero[i]:
                place.zero_()
            self._are_zero[i] = gradient is None
        self._backward.replay()
        results: list[torch.Tensor | None] = [None if g is None else g.detach() for g in self._gradients]
        kept = [self._gradients[i] for i in self._handed_out]
        if kept:  # AccumulateGrad takes what it is given as `.grad`, into which the next replay would write
            copies = [torch.empty_like(gradient) for gradient in kept]
            torch._foreach_copy_(copies, kept)
            for i, copy in zip(self._handed_out, copies, strict=True):
                results[i] = copy
        return results


class _Replayed(torch.autograd.Function):
    """A captured forward, and its backward."""

    @staticmethod
    def forward(ctx: Any, captured: Captured, images: torch.Tensor, *held: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.captured, ctx.turn = captured, object()
        ctx.set_materialize_grads(False)
        tensors = captured.replay_forward(ctx.turn, images, held)
        ctx.mark_non_differentiable(*captured.without_gradient(tensors))
        return tuple(tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        captured, ctx.captured = ctx.captured, None  # a loss that somebody keeps mustn't keep the graphs
        if captured is None:
            raise RuntimeError(_GONE)
        return None, None, *captured.replay_backward(ctx.turn, gradients)
