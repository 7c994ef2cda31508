"""SiLU isn't computed in place in training, where PyTorch copies what it would overwrite: a kernel more for each.

Ultralytics before 8.4.111 or so sets every `SiLU` to in place; the numbers and the memory are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..own_code import own_code
from ..patches import Patch, patch
from ..run import Run, StashKey

__all__: list[str] = []


def _are_in_place(original: Any) -> bool:
    """Whether this Ultralytics sets them so."""
    from ultralytics.utils.torch_utils import initialize_weights

    model = torch.nn.Sequential(torch.nn.SiLU())
    initialize_weights(model)
    return bool(model[0].inplace)


_NEVER = StashKey[bool]()
"""Whether users' code in the model may use a SiLU's input once more, and so counts on what is in it."""


@patch(
    "torch.nn:SiLU.forward",
    why="what is overwritten would be copied first, 75 times a step of a YOLO11n",
    source="ultralytics/utils/torch_utils.py, initialize_weights",
    needed=_are_in_place,
    everywhere=False,
)
def silu(run: Run, original: Callable[..., Any], self: Any, input: torch.Tensor) -> torch.Tensor:
    """Compute SiLU, in place where no gradient needs what is there."""
    if self.inplace and input.requires_grad and torch.is_grad_enabled() and not run.stash.get(_NEVER, False):
        return torch.nn.functional.silu(input)
    return original(self, input)  # type: ignore[no-any-return]


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Leave SiLU's input as it is, in training."""
    return [silu]


@hookimpl
def xpu_prepare_model(trainer: Any) -> None:
    """Look for users' code."""
    trainer.xpu.stash[_NEVER] = bool(own_code(trainer.model))
