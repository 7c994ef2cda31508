"""Batches in pinned memory, copied to the device while the host goes on; each with a switch."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..hookspecs import hookimpl
from ..numerics import Check, Given, avoids, compared
from ..options import Option
from ..run import Run, StashKey
from ..transfer import to_device

__all__: list[str] = []

PIN_MEMORY = Option(
    "pin_memory",
    True,
    "batches are loaded into pinned host memory, which the GPU reads by itself",
    tried=(True, False),
)
NON_BLOCKING = Option(
    "non_blocking",
    True,
    "batches are copied to the GPU while the host goes on; `False` by default on an integrated GPU, where it was "
    "seen to be slower (ComfyUI#9322)",
    tried=(True, False),
    usual=lambda device: not device.integrated,
)


@hookimpl
def xpu_options() -> list[Option[bool]]:
    return [PIN_MEMORY, NON_BLOCKING]


def _pinned(given: Given) -> list[torch.Tensor]:
    there = []
    for n in (200, 50_000):
        buffer = torch.empty(n, dtype=torch.int32, pin_memory=given.device.type != "cpu")
        buffer.copy_(torch.arange(n, dtype=torch.int32))
        there.append(buffer.to(given.device, non_blocking=True) + 1)
    return there


_COPIES = Check(
    "copies from pinned memory",
    torch.int32,
    compared(_pinned, torch.int32, exact=True),
    0,
    "share",
    instead="Batches are copied from pageable memory, which is slower",
)
_PINS = StashKey[bool]()


@hookimpl
def xpu_numerics() -> list[Check]:
    return [_COPIES]


@hookimpl
def xpu_configure(trainer: Any) -> None:
    run: Run = trainer.xpu
    run.stash[_PINS] = run.options[PIN_MEMORY] and not avoids(run, _COPIES)


def _pins(run: Run) -> bool:
    return run.stash.get(_PINS, run.options[PIN_MEMORY])


@hookimpl
def xpu_wrap_dataloader(trainer: Any, loader: Any, mode: str) -> Any | None:
    """Pin what Ultralytics doesn't (before 8.4.111 it pins for CUDA only), or unpin where that was asked for."""
    run: Run = trainer.xpu
    wanted = _pins(run)
    if bool(getattr(loader, "pin_memory", wanted)) == wanted:
        return None
    loader.pin_memory = wanted
    if wanted and not _pins_for_the_accelerator():
        loader.pin_memory_device = "xpu"
    if getattr(loader, "iterator", None) is not None:  # before 8.4.170 the iterator is made with the loader
        generator = getattr(loader, "generator", None)
        if generator is not None:  # an iterator draws from it, and another one would shuffle otherwise
            generator.manual_seed(generator.initial_seed())
        loader.reset()
    return loader


@hookimpl
def xpu_move_batch(trainer: Any, batch: dict[str, Any]) -> dict[str, Any] | None:
    """Copy a batch's tensors as the switch says; Ultralytics then finds them on the device and leaves them."""
    run: Run = trainer.xpu
    device, non_blocking = trainer.device, run.options.on(run.device, NON_BLOCKING)
    small = to_device(batch, device, non_blocking=non_blocking) if _pins(run) else {}
    return {
        k: small[k] if k in small else v.to(device, non_blocking=non_blocking) if isinstance(v, torch.Tensor) else v
        for k, v in batch.items()
    }


def _pins_for_the_accelerator() -> bool:
    """Whether this PyTorch pins for whatever accelerator there is (from 2.7 on), or for CUDA unless told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A generator of its own: an iterator draws a seed, which would be the next one of the process otherwise.
        loader: Any = DataLoader([0], pin_memory=True, generator=torch.Generator())  # type: ignore[arg-type]
        return bool(getattr(iter(loader), "_pin_memory", True))
