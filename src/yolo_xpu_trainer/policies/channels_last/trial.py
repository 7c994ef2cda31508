"""Try users' code on the first batch in both memory formats, before a run depends on channels_last."""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map

from ...device_errors import is_lost, is_out_of_memory
from ...devices import empty_cache
from ...own_code import KNOWN
from .layout import go_without, of, train_in, train_in_nchw
from .restoring import exact, restored, same_random_numbers
from .weights import lay_out

__all__ = ["LIMIT", "Trial"]


LIMIT = 1e-3
"""Relative difference of losses and predictions between the layouts, in float32, that is no rounding any more."""

GRADIENT_LIMIT = 1.0
"""The same for a weight's gradient. Where weights have learnt nothing yet, rounding decides which anchor a label goes
to, and sums over large feature maps are rounded differently: up to 0.6 was seen on a CPU. A wrong order made 1.7 and
more."""


class Trial:
    """Tries users' code on the first batch that is trained with.

    As a hook of the trained model it gets the batch as the model does. Loss, gradients and predictions are computed in
    either layout, in float32, on the model itself, because a copy would take its memory again. What that changes in the
    model and in random generators is put back, and what users' code collects in objects that it refers to. What it
    notes elsewhere, such as in a file, is not.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._handle = trainer.model.register_forward_pre_hook(self, prepend=True)

    def __reduce__(self) -> Any:
        return getattr, ({}, "get")  # a copy of the model isn't tried: this gives a hook's second argument back

    def __call__(self, model: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Try the model's own code, if this is the first forward of training."""
        if not (model.training and torch.is_grad_enabled()):
            return
        self._handle.remove()
        trainer = self._trainer
        trainer.xpu.recovery.calling(self._decide, model, args, instead=lambda *_: go_without(trainer))

    def _decide(self, model: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Try the model's own code, and train in the layout that it works in."""
        trainer, batch = self._trainer, args[0] if len(args) == 1 else None
        if not of(trainer).wanted or model is not trainer.model:
            return
        if reason := _problem(model, batch):
            train_in_nchw(trainer, reason)
        else:
            train_in(torch.channels_last, trainer)
        if isinstance(batch, dict):
            wanted = torch.channels_last if of(trainer).wanted else torch.contiguous_format
            batch["img"] = batch["img"].contiguous(memory_format=wanted)


def _problem(model: torch.nn.Module, batch: Any) -> str:
    """Return why a model is not trained in channels_last, "" where it can be."""
    images = batch.get("img") if isinstance(batch, dict) else None
    if not isinstance(images, torch.Tensor) or images.dim() != 4:
        return "the model has code of its own, and isn't trained with a batch of images, with which to try it."
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters()):
        return "hooks that are called when a gradient is accumulated can't be tried in channels_last."
    try:
        return _compared(model, batch)
    finally:
        torch.clear_autocast_cache()
        if images.device.type == "xpu":
            empty_cache(images.device.index)


def _compared(model: torch.nn.Module, batch: dict[str, Any]) -> str:
    """Compute in both layouts, and say why that of channels_last can't be taken."""
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        result = _attempt(model, batch, memory_format)
        if isinstance(result, str):
            return result
        results.append(result)
    return _difference(*results)


def _attempt(model: torch.nn.Module, batch: dict[str, Any], memory_format: torch.memory_format) -> _Result | str:
    """Return what a model computes in a layout, or why it doesn't."""
    device = batch["img"].device
    try:
        with restored(model), exact(device), same_random_numbers(device):
            lay_out(model, memory_format)
            return _compute(model, batch, memory_format)
    except Exception as error:  # of whatever type users' code raises
        if is_lost(error):
            raise
        return _told(error, memory_format)


class _Result(NamedTuple):
    """What a model computed of a batch."""

    loss: float
    gradients: dict[str, torch.Tensor]
    predictions: list[float]
    """The norms of the tensors that it predicts: rounding may reorder them, where a head chooses by rank."""


def _compute(model: torch.nn.Module, batch: dict[str, Any], memory_format: torch.memory_format) -> _Result:
    """Train with a batch as far as the gradients, and predict from its images."""
    batch = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, dict(batch))
    images = batch["img"] = batch["img"].contiguous(memory_format=memory_format)
    loss = model(batch)[0].sum()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}
    model.eval()
    with torch.no_grad():
        predicted = [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, torch.Tensor)]
    floats = [leaf.float() for leaf in predicted if leaf.is_floating_point() and leaf.numel()]
    return _Result(float(loss.detach()), gradients, _norms(floats))


def _norms(tensors: list[torch.Tensor]) -> list[float]:
    return torch.stack([tensor.norm().float() for tensor in tensors]).tolist() if tensors else []


def _difference(plain: _Result, ours: _Result) -> str:
    """Return in what the layouts differ by more than rounding, "" where they don't."""
    found = {"the loss": abs(plain.loss - ours.loss) / (abs(plain.loss) or 1.0) / LIMIT}
    for a, b in zip(plain.predictions, ours.predictions, strict=False):
        found["a prediction"] = max(found.get("a prediction", 0.0), abs(a - b) / (abs(a) or 1.0) / LIMIT)
    names = [name for name in plain.gradients if name in ours.gradients]
    sizes = dict(zip(names, _norms([plain.gradients[name] for name in names]), strict=True))
    apart = dict(zip(names, _norms([plain.gradients[name] - ours.gradients[name] for name in names]), strict=True))
    smallest = 0.01 * max(sizes.values(), default=0.0)  # a bias in front of a batch norm has rounding for a gradient
    for name in names:
        found[f"the gradient of {name}"] = apart[name] / (max(sizes[name], smallest) or 1.0) / GRADIENT_LIMIT
    worst = max(found, key=lambda what: found[what] if found[what] == found[what] else 0.0)  # not NaN from NaN
    if not found[worst] > 1:
        return ""
    limit = GRADIENT_LIMIT if worst.startswith("the gradient") else LIMIT
    return (
        f"the model computes something else in channels_last: {worst} differs by {found[worst] * limit:.2g} "
        f"(limit {limit:g})."
    )


def _told(error: Exception, memory_format: torch.memory_format) -> str:
    """Return an error of a trial as a reason."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if is_out_of_memory(error):
        return "there was not enough memory to try the model's own code in channels_last."
    if memory_format is torch.contiguous_format:
        return f"the model's own code can't be tried: {_place(error)} failed in float32 in NCHW, too: {text}"
    return f"{_place(error)} can't work in channels_last: {text}"


def _place(error: Exception) -> str:
    """Return the name of the innermost function of users' that an error came through."""
    name = "the model's own code"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] not in KNOWN:
            code, owner = frame.f_code, frame.f_locals.get("self")
            name = getattr(code, "co_qualname", code.co_name)
            if owner is not None:
                name = f"{type(owner).__name__}.{code.co_name}"
    return name
