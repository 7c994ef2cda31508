"""Several XPUs exchange gradients: they lie where they are added up, and are sent in bf16 where asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..hookspecs import hookimpl
from ..options import Option
from ..patches import Patch, is_upstream, patch
from ..run import Run

__all__: list[str] = []

BF16_GRADIENTS = Option(
    "bf16_gradients",
    False,
    "several GPUs exchange gradients in bf16: half the bytes, each value rounded to 8 bits before it is added",
)


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [BF16_GRADIENTS]


@hookimpl
def xpu_report(trainer: Any) -> str | None:
    """Say where gradients are rounded."""
    run: Run = trainer.xpu
    return "gradients exchanged in bf16" if run.world_size > 1 and run.options[BF16_GRADIENTS] else None


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    run: Run = trainer.xpu
    return [ddp_init] if run.world_size > 1 else []


@patch(
    "torch.nn.parallel:DistributedDataParallel.__init__",
    why="gradients are held twice, and each is copied back from where it was added up",
    everywhere=False,
)
def ddp_init(run: Run, original: Callable[..., Any], self: Any, module: Any, *args: Any, **kwargs: Any) -> None:
    """Share a model, with its gradients as views of the buckets in which they are added up."""
    kwargs.setdefault("gradient_as_bucket_view", True)
    if _uses_the_same_always(module):
        # No step looks for parameters that it doesn't use, nor adds up which ones those are.
        kwargs.update(static_graph=True, find_unused_parameters=False)
    original(self, module, *args, **kwargs)
    if run.options[BF16_GRADIENTS]:
        self.register_comm_hook(None, lambda state, bucket: _in_bf16(bucket))  # whose annotations it would check


def _uses_the_same_always(module: Any) -> bool:
    """Whether each step of a model uses the same parameters: a detector without an object in its batch doesn't."""
    from ultralytics.nn.tasks import ClassificationModel

    return type(module) is ClassificationModel and is_upstream(type(module).loss)


def _in_bf16(bucket: Any) -> Any:
    """Add up a bucket's gradients in bf16. PyTorch's own hook of this kind refuses backends other than it knows."""
    gradients = bucket.buffer()
    rounded = (gradients / torch.distributed.get_world_size()).to(torch.bfloat16)

    def widen(done: Any) -> torch.Tensor:
        gradients.copy_(done.value()[0])
        return gradients  # type: ignore[no-any-return]

    work: Any = torch.distributed.all_reduce(rounded, async_op=True)
    return work.get_future().then(widen)
