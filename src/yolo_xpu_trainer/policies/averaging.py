"""The averaged weights are updated together, in three kernels, where an older Ultralytics takes three for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..own_code import is_known, source_of
from ..patches import Patch, patch

__all__: list[str] = []

_BYTES = 32 << 20  # of what is added at a time, which takes memory


def _goes_one_by_one(original: Callable[..., Any]) -> bool:
    return is_known(original) and "_foreach_" not in source_of(original)


@patch(
    "ultralytics.utils.torch_utils:ModelEMA.update",
    why="each averaged weight would be updated in three kernels of its own, 1300 a step of a YOLO11n",
    needed=_goes_one_by_one,
)
def update(original: Callable[..., Any], self: Any, model: Any) -> Any:
    """Move the average towards a model's weights: the same products and sums, of many tensors at once."""
    from ultralytics.utils import torch_utils

    if not self.enabled:
        return original(self, model)
    unwrap = getattr(torch_utils, "unwrap_model", None) or torch_utils.de_parallel
    current = unwrap(model).state_dict()
    pairs = [(v, current[k].detach()) for k, v in self.ema.state_dict().items() if v.dtype.is_floating_point]
    if len({v.data_ptr() for v, _ in pairs if v.numel()}) < sum(v.numel() > 0 for v, _ in pairs):
        return original(self, model)  # which moves a weight once for each of its names
    share = self.decay(self.updates + 1)
    self.updates += 1
    for chunk in _chunks(pairs):
        averaged, live = map(list, zip(*chunk, strict=True))
        torch._foreach_mul_(averaged, share)
        torch._foreach_add_(averaged, torch._foreach_mul(live, 1 - share))
    return None


def _chunks(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Yield pairs of one kind together, as many as `_BYTES` hold: kernels of many tensors take one dtype and device."""
    kinds: dict[Any, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for pair in pairs:
        kinds.setdefault(tuple((t.device, t.dtype) for t in pair), []).append(pair)
    for of_kind in kinds.values():
        chunk: list[tuple[torch.Tensor, torch.Tensor]] = []
        size = 0
        for pair in of_kind:
            chunk.append(pair)
            size += pair[1].numel() * pair[1].element_size()
            if size >= _BYTES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Update the averaged weights together."""
    return [update]
