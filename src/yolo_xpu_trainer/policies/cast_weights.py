"""In mixed precision weights are rounded in a few kernels a step, and their gradients widened in as many.

Autocast rounds each weight where it is used and widens each gradient, in a kernel each: 190 a step of a YOLO11n. The
numbers are the same, bit for bit; weights, optimizer, averages and checkpoints are float32 as before. Source: Intel's
own trainer, getitune, casts the model to bf16 to be rid of these kernels; torch-xpu-ops#4929 measures 95 ms against 80.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..batches import changes_batches
from ..hookspecs import hookimpl
from ..numerics import Check, Given, avoids, compared
from ..options import Option
from ..own_code import named, own_code
from ..patches import Patch, patch
from ..run import EAGER_STEP, Run, StashKey

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")

CAST_WEIGHTS = Option(
    "cast_weights",
    True,
    "in mixed precision weights are rounded in a few kernels and their gradients widened in as many, instead of one "
    "for each; not with several GPUs or in compiled steps",
    tried=(True, False),
)
_PARTS = 4  # of a model, in the order of use: gradients are there in both dtypes until those of a part are complete
# What autocast rounds the weights of, and nothing else in PyTorch's own `forward` reads them. Subclasses may.
_KINDS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)
_LIMIT = 1e-2  # of the largest number of a weight: more than rounding in any way


def _there_and_back(dtype: torch.dtype) -> Callable[[Given], list[torch.Tensor]]:
    """Return what rounds weights of all kinds, and widens their gradients."""

    def compute(given: Given) -> list[torch.Tensor]:
        layouts = (None, torch.channels_last)
        weights = [
            given.normal(*shape, grad=True, layout=layouts[i % 2] if len(shape) == 4 else None)
            for i, shape in enumerate(((16, 3, 3, 3), (32, 16, 1, 1), (80,), (1, 16, 1, 1), (64, 64, 3, 3)) * 5)
        ]
        rounded = _Rounded.apply(dtype, *weights)
        gradients = [given.normal(*weight.shape).to(dtype) for weight in weights]
        return [*rounded, *torch.autograd.grad(rounded, weights, gradients)]

    return compute


_TOGETHER = {
    dtype: Check(
        "weights rounded together",
        dtype,
        compared(_there_and_back(dtype)),
        _LIMIT,
        instead="Each weight is rounded by itself",
    )
    for dtype in (torch.bfloat16, torch.float16)
}


@hookimpl
def xpu_numerics() -> list[Check]:
    return list(_TOGETHER.values())


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [CAST_WEIGHTS]


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Round a model's weights as the training loop enters autocast, for as long as it is in it."""
    run: Run = trainer.xpu
    if not run.options[CAST_WEIGHTS] or run.world_size > 1:
        return []
    compiles = getattr(getattr(trainer, "args", None), "compile", False)

    @patch(
        "ultralytics.engine.trainer:autocast",
        why="each weight would be rounded, and each gradient widened, in a kernel of its own",
        everywhere=False,
    )
    def autocast(run: Run, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Enter Ultralytics' autocast."""
        context = original(*args, **kwargs)
        is_compiled = compiles and not run.stash.get(EAGER_STEP, False)
        if not run.precision.dtype or not torch.is_grad_enabled() or is_compiled or _is_wrong(run):
            return context
        return _with_rounded_weights(trainer, context)

    return [autocast]


def _is_wrong(run: Run) -> bool:
    """Whether the device rounds weights wrongly where they are many, in the precision that the run has by now."""
    dtype = run.precision.dtype
    found = run.stash.get(_WRONG, None)  # type: ignore[misc]
    if dtype is not None and (found is None or found[0] is not dtype):
        found = run.stash[_WRONG] = dtype, avoids(run, _TOGETHER[dtype])
    return bool(found and found[1])


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Look for users' code at the beginning of each epoch: callbacks may have put some into the model."""
    trainer.add_callback("on_train_epoch_start", trainer.xpu.recovery.guarded(_look_again))


def _look_again(trainer: Any) -> None:
    if _WEIGHTS in trainer.xpu.stash:
        trainer.xpu.stash[_WEIGHTS].look_for_own_code(trainer)


@contextmanager
def _with_rounded_weights(trainer: Any, context: Any) -> Iterator[None]:
    run: Run = trainer.xpu
    assert run.precision.dtype is not None
    weights: _Weights | None = run.stash.get(_WEIGHTS, None)  # type: ignore[misc]
    if weights is None or not weights.are_those_of(trainer.model):
        weights = run.stash[_WEIGHTS] = _Weights(trainer)
    with context, weights.rounded(run.precision.dtype) if weights.are_seen else weights.seen_in_use():
        yield


class _Weights:
    """The weights of a model that autocast rounds, and where modules have them.

    Args:
        trainer: The trainer. Where its model has users' code, which may read a weight and expect it in float32, there
            are none, unless the option was given.

    Attributes:
        are_seen: Whether a batch has shown which weights autocast rounds.
    """

    def __init__(self, trainer: Any) -> None:
        self.are_seen = self._is_left = False
        self._model = trainer.model
        self._places: list[tuple[torch.nn.Module, str, torch.nn.Parameter]] = []
        self._distinct: list[torch.nn.Parameter] = []
        self.look_for_own_code(trainer)

    def look_for_own_code(self, trainer: Any) -> None:
        """Leave the weights as they are where users' code may read one within autocast: in the model, or in a batch."""
        own = own_code(trainer.model)
        owner = named(own.values()) if own else changes_batches(trainer)
        if owner and not trainer.xpu.options.is_given(CAST_WEIGHTS) and not self._is_left:
            _LOGGER.info(
                f"XPU: weights are rounded one by one, because {owner} may read one and expect float32. "
                f"If it doesn't, set {CAST_WEIGHTS.key}=True."
            )
            self.are_seen = self._is_left = True
            self._places, self._distinct = [], []

    def are_those_of(self, model: torch.nn.Module) -> bool:
        """Whether a model has these weights still: callbacks may freeze or replace some."""
        return model is self._model and all(
            module._parameters.get(name) is weight and weight.requires_grad for module, name, weight in self._places
        )

    @contextmanager
    def seen_in_use(self) -> Iterator[None]:
        """Watch a batch, of which autocast rounds the weights, to find those that it rounds wherever they are used.

        Others are used where autocast is off, as those of RT-DETR's decoder are.
        """
        used: dict[torch.nn.Module, bool] = {}

        def note(module: torch.nn.Module, args: Any) -> None:
            used[module] = used.get(module, True) and torch.is_autocast_enabled("xpu")

        left_out = {part for whole in self._model.modules() if _looks_at_weights(whole) for part in whole.modules()}
        hooks = [
            module.register_forward_pre_hook(note)
            for module in self._model.modules()
            if type(module) in _KINDS and module not in left_out
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._places = [  # not after an error: a part of the batch doesn't show all
            (module, name, weight)
            for module, is_rounded in used.items()
            if is_rounded and module._parameters.keys() <= {"weight", "bias"}  # others are made into a weight
            for name, weight in module._parameters.items()
            if weight is not None and weight.requires_grad and weight.dtype is torch.float32
        ]
        self._distinct = list({id(weight): weight for *_, weight in self._places}.values())
        self.are_seen = True

    @contextmanager
    def rounded(self, dtype: torch.dtype) -> Iterator[None]:
        """Let the modules find their weights rounded, in attributes that come before their parameters."""
        if not self._places:
            yield
            return
        rounded: dict[int, torch.Tensor] = {}
        size = -(-len(self._distinct) // _PARTS)
        for start in range(0, len(self._distinct), size):
            part = self._distinct[start : start + size]
            rounded.update(zip(map(id, part), _Rounded.apply(dtype, *part), strict=True))
        try:
            for module, name, weight in self._places:
                vars(module)[name] = rounded[id(weight)]
            yield
        finally:
            for module, name, _ in self._places:
                vars(module).pop(name, None)


def _looks_at_weights(module: torch.nn.Module) -> bool:
    """Whether a module asks for its parts' weights, rather than calling them alone."""
    return type(module).__name__ == "RealNVP"  # of YOLO26's pose: `log_prob` makes itself float32 if they aren't


_WEIGHTS = StashKey[_Weights]()
_WRONG = StashKey[tuple[torch.dtype, bool]]()


class _Rounded(torch.autograd.Function):
    """Weights in another dtype."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Round weights.

        Args:
            ctx: What backward is given.
            dtype: To what.
            weights: Float32 tensors of any shapes.
        """
        ctx.set_materialize_grads(False)  # a weight without a use has no gradient, rather than zeros
        return tuple(_copied(weights, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Widen gradients."""
        wide = iter(_copied([gradient for gradient in gradients if gradient is not None], torch.float32))
        return None, *(None if gradient is None else next(wide) for gradient in gradients)


def _copied(tensors: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return copies in another dtype, in the same layout, made in one kernel."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
