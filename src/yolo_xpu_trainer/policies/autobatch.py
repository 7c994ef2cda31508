"""AutoBatch sees an XPU's memory, and its answer is capped by what the XPU can do."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..devices import limit_of_allocations
from ..hookspecs import hookimpl
from ..patches import Patch, applied, like, patch, stand_in
from ..run import Run
from ..versions import needs_accelerators

__all__ = ["Probe"]

Probe = tuple[int, Any]
"""A batch that AutoBatch tried, and the GiB that it took, None where it failed."""

_LOGGER = logging.getLogger("ultralytics")
_SEGMENT_ROUNDING = 2 << 20  # PyTorch's allocator asks the driver for multiples of it
# What Adam and MuSGD keep of a weight: two floats. Nothing that Ultralytics measures has them.
_STATE = 8
# What the assigner holds in its largest tensor for a target and an anchor: four floats, in Ultralytics before 8.4.110.
_PAIR = 16


@patch(
    "ultralytics.utils.autobatch:autobatch",
    why="it would count on memory that isn't there, and on single allocations that the device refuses",
    source="ultralytics/utils/autobatch.py; unified-runtime#1245",
)
def autobatch(
    run: Run,
    original: Callable[..., int],
    model: Any,
    imgsz: int = 640,
    fraction: float = 0.6,
    *args: Any,
    **more: Any,
) -> int:
    """Let Ultralytics choose a batch by the XPU's memory, then see that the XPU can do it, and say so."""
    from ultralytics.utils import colorstr

    if next(model.parameters()).device.type != "xpu":
        return original(model, imgsz, fraction, *args, **more)
    device = run.device
    if not device.can_count_memory():
        return _default(run, more.get("dataset_size", 0))
    available = device.available_memory()
    optimizer = sum(p.numel() for p in model.parameters()) * _STATE
    usable = max(available.size + device.reserved_memory() - optimizer, 0) / 2**30
    probes: list[Probe] = []
    with applied(_measuring(probes, optimizer), run), _readable_cuda_mask():
        chosen = original(model, imgsz, fraction, *args, **more)
    batch = _capped(chosen, probes, fraction * usable)
    seen = "would need more" if batch < chosen else "failed when it was tried"
    reason = f"; {chosen} {seen}" if batch != chosen else ""
    if device.allocation_limit is not None and any(gib for _, gib in probes):
        an_image = _largest(model, imgsz, more.get("max_num_obj", 0))
        allowed = (device.allocation_limit - _SEGMENT_ROUNDING) // an_image
        if allowed < batch:
            reason = (
                f"; {batch} would need a single allocation of {device.allocation_limit / 2**30:g} GiB or more, "
                f"and {limit_of_allocations()}"
            )
            batch = max(allowed, 1)
    _LOGGER.info(
        f"{colorstr('XPU:')} AutoBatch chose batch {batch}, for {fraction:.0%} of {usable:.1f} GiB on {device} "
        f"({available.basis}){reason}."
    )
    return batch


@contextmanager
def _readable_cuda_mask() -> Iterator[None]:
    """Hide an empty `CUDA_VISIBLE_DEVICES`, which a training on the CPU leaves behind.

    From 8.3.240 or so to 8.4.60 Ultralytics reads its first character here, for a heading.
    """
    name = "CUDA_VISIBLE_DEVICES"
    empty = os.environ.get(name) == ""
    if empty:
        del os.environ[name]
    try:
        yield
    finally:
        if empty:
            os.environ[name] = ""


def _default(run: Run, dataset_size: int) -> int:
    """Return the batch that Ultralytics takes where it can't measure."""
    from ultralytics.utils import DEFAULT_CFG

    batch = min(int(DEFAULT_CFG.batch), dataset_size or int(DEFAULT_CFG.batch))
    _LOGGER.warning(
        f"XPU: AutoBatch can't measure on {run.device}: PyTorch {torch.__version__} doesn't tell how much memory it "
        f"holds there, as 2.5.1 and later do. The batch is Ultralytics' default, {batch}; name one, or update PyTorch."
    )
    return batch


def _capped(chosen: int, probes: Sequence[Probe], budget: float) -> int:
    """Return what Ultralytics chose, or the largest probe within the budget where a smaller one was beyond it already.

    Before 8.4.190 Ultralytics falls back to a batch of 16 where not even one image is within it, and to one of 1 where
    that is what failed: at 32 pixels batch normalisation has a single value of one image.
    """
    ran = [batch for batch, gib in probes if gib]
    if ran and chosen < ran[0]:
        chosen = max((batch for batch, gib in probes if gib and gib <= budget), default=ran[0])
    beyond = [batch for batch, gib in probes if ran and batch > ran[0] and (not gib or gib > budget)]
    if not beyond or chosen < min(beyond):
        return chosen
    return max(batch for batch in ran if batch < min(beyond))


class _LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the size of the largest tensor that any operator makes."""

    size: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.size = max(self.size, leaf.untyped_storage().nbytes())
        return out


def _largest(model: Any, imgsz: int, max_num_obj: int) -> int:
    """Return the bytes that an image adds to a run's largest allocation.

    That is an activation of validation, where a batch has twice the images, padded by up to a stride, or what the
    assigner makes of targets and anchors.
    """
    device = next(model.parameters()).device
    channels, side = getattr(model, "yaml", {}).get("channels", 3), imgsz + int(model.stride.max())
    images = torch.zeros(2, channels, side, side, device=device)
    largest = _LargestTensor()  # type: ignore[no-untyped-call]
    with torch.no_grad(), largest:
        model(images)
    anchors = sum((imgsz / stride) ** 2 for stride in model.stride.tolist())
    return max(largest.size, int(max_num_obj * anchors * _PAIR))


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Show AutoBatch the memory that this process can have."""
    return [autobatch]


# While AutoBatch measures


def _measuring(probes: list[Probe], reserved: int) -> list[Patch]:
    """Return the patches that show AutoBatch an XPU's memory, and note what it finds.

    Args:
        probes: Where to note it.
        reserved: Bytes of the device's memory that training takes beside what is measured.
    """

    def profiling(name: str) -> Patch:
        @patch(
            f"ultralytics.utils.autobatch:{name}",
            why="what it finds doesn't always decide",
            everywhere=False,
            optional=True,
        )
        def profile(original: Callable[..., Any], inputs: Any, *args: Any, **more: Any) -> Any:
            results = original(inputs, *args, **more)
            probes.extend((x.shape[0], result and result[2]) for x, result in zip(inputs, results, strict=True))
            return results

        return profile

    @stand_in(
        "ultralytics.utils.torch_utils:torch",
        why="before 8.4.111 its profiler asks CUDA how much memory is in use, and finds none",
        source="ultralytics/utils/torch_utils.py, profile_ops",
        needed=needs_accelerators,
        everywhere=False,
    )
    def torch_of_profiler(run: Run, original: Any) -> Any:
        return like(original, cuda=torch.xpu)

    @stand_in(
        "ultralytics.utils.autobatch:torch",
        why="before 8.4.111 it asks CUDA for the memory of an XPU, and whether cuDNN is free to choose",
        needed=needs_accelerators,
        everywhere=False,
    )
    def torch_of_autobatch(run: Run, original: Any) -> Any:
        backends = SimpleNamespace(cudnn=SimpleNamespace(benchmark=False))
        return like(original, cuda=_figures(run, reserved), backends=backends)

    @stand_in(
        "ultralytics.utils.autobatch:get_torch_device_backend",
        why="it asks for free memory, which not every driver tells, outside of its `try`; before 8.4.190 it counts on "
        "all of the device's memory, whoever uses it; and it leaves nothing to an integrated GPU's host, nor to the "
        "optimizer",
        source="pytorch#159728, vLLM#40295, ultralytics/utils/autobatch.py",
        everywhere=False,
        optional=True,
    )
    def backend(run: Run, original: Any) -> Any:
        return lambda device: _figures(run, reserved)

    # `profile` is what `profile_ops` was called before 8.3.130
    return [torch_of_profiler, torch_of_autobatch, backend, profiling("profile_ops"), profiling("profile")]


def _figures(run: Run, reserved: int) -> Any:
    """Return a stand-in for `torch.xpu` that tells the memory which this process can have.

    Where Ultralytics doesn't ask for free memory, it takes all of a device's for it: then that is the total.
    """
    device = run.device

    def mem_get_info(_: Any = None) -> tuple[int, int]:
        return max(device.available_memory().size - reserved, 0), device.total_memory

    def get_device_properties(_: Any = None) -> SimpleNamespace:
        usable = device.available_memory().size + device.reserved_memory() - reserved
        return SimpleNamespace(
            name=device.name, total_memory=device.total_memory if _asks_for_free_memory() else usable
        )

    return like(torch.xpu, mem_get_info=mem_get_info, get_device_properties=get_device_properties)


def _asks_for_free_memory() -> bool:
    """Whether this Ultralytics asks how much memory is free, as it does since 8.4.190."""
    from ultralytics.utils import autobatch

    return "mem_get_info" in inspect.unwrap(autobatch.autobatch).__code__.co_names
