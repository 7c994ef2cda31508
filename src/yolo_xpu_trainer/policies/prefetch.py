"""The next training batches go to the device in a stream of their own, while it works on the one at hand."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from weakref import WeakSet

import torch
import wrapt

from ..hookspecs import hookimpl
from ..plugins import manager
from ..run import Run, Targets

__all__ = ["Prefetcher"]

_LOGGER = logging.getLogger("ultralytics")


@hookimpl(wrapper=True)
def xpu_wrap_dataloader(trainer: Any, loader: Any, mode: str) -> Generator[None, Any, Any]:
    """Look ahead in whatever training loader there is in the end, unless this process itself loads its batches."""
    answer = yield
    final = loader if answer is None else answer
    run: Run = trainer.xpu
    if mode != "train" or not run.options.prefetch or not getattr(final, "num_workers", 0):
        return answer
    return Prefetcher(final, trainer) if _has_record_stream(trainer.device) else answer


@hookimpl
def xpu_before_resume(trainer: Any) -> None:
    """Keep nothing of an epoch that was left early, by a time limit or a callback, until its end."""
    trainer.add_callback("on_train_epoch_end", _release)


@hookimpl(tryfirst=True)
def xpu_move_batch(trainer: Any, batch: dict[str, Any]) -> dict[str, Any] | None:
    """Leave a batch that came out of its loader on the device, whose targets were counted on the host before."""
    loader = getattr(trainer, "train_loader", None)
    ahead = loader.arrived(batch) if isinstance(loader, Prefetcher) else None
    if ahead is None:
        return None
    trainer.xpu.targets = ahead.targets if batch.get("batch_idx") is ahead.index else None
    arrived = dict(batch)
    if isinstance(images := batch.get("img"), torch.Tensor):
        # Python's `enumerate` holds on to a batch of two steps ago: of its images nothing may be left but the shape.
        batch["img"] = torch.empty_like(images, device="meta")
    return arrived


def _release(trainer: Any) -> None:
    loader = getattr(trainer, "train_loader", None)
    if isinstance(loader, Prefetcher):
        loader.release()


def _has_record_stream(device: torch.device) -> bool:
    """Whether memory can be kept for another stream than its own: for XPUs since torch 2.6 (torch-xpu-ops#1047)."""
    try:
        torch.empty(1, device=device).record_stream(torch.xpu.current_stream(device))
    except NotImplementedError:
        return False
    return True


@dataclass(frozen=True)
class _Ahead:
    """A batch ahead of its step.

    Attributes:
        batch: On the device, or on its way there.
        targets: What the host counted in it.
        index: The tensor that they were counted in, as it is on the device.
        there: When the batch is there; None where it stayed on the host.
    """

    batch: dict[str, Any]
    targets: Targets | None
    index: Any
    there: torch.xpu.Event | None


class Prefetcher(wrapt.ObjectProxy):  # type: ignore[misc,type-arg,unused-ignore]
    """A training loader whose batches come out on the device, copied there before they are asked for.

    It looks ahead within an epoch: nothing is fetched before the first batch is asked for, nor beyond the loader's own
    end. In everything else it is the loader.

    Args:
        loader: What loads the batches.
        trainer: The trainer, whose policies move them.
    """

    def __init__(self, loader: Any, trainer: Any) -> None:
        super().__init__(loader)
        self._self_trainer = trainer
        self._self_depth = trainer.xpu.options.prefetch
        self._self_stream: Any = torch.xpu.Stream(trainer.device)  # type: ignore[no-untyped-call]
        self._self_iterators: WeakSet[Generator[dict[str, Any], None, None]] = WeakSet()
        self._self_handed_out: _Ahead | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterator = self._self_look_ahead()
        self._self_iterators.add(iterator)
        return iterator

    def arrived(self, batch: dict[str, Any]) -> _Ahead | None:
        """Tell, once, about a batch that was handed out last; None where it is another, or is still on the host."""
        handed_out = self._self_handed_out
        if handed_out is None or handed_out.batch is not batch:
            return None
        self._self_handed_out = None
        return handed_out

    def release(self) -> None:
        """Let go of every batch that is held; an iteration that was left early is over."""
        self._self_handed_out = None
        for iterator in list(self._self_iterators):
            iterator.close()

    def close(self) -> None:
        """Let go of every batch, then close the loader, where it can be closed."""
        self.release()
        if hasattr(self.__wrapped__, "close"):
            self.__wrapped__.close()

    def _self_look_ahead(self) -> Generator[dict[str, Any], None, None]:
        # No variable holds a batch here, for it would live until the next one is asked for.
        ahead: deque[_Ahead] = deque()
        moving = map(self._self_move, self.__wrapped__)
        ahead.extend(islice(moving, self._self_depth))
        while True:
            ahead.extend(islice(moving, 1))
            if not ahead:
                return
            yield self._self_hand_out(ahead.popleft())

    def _self_move(self, batch: dict[str, Any]) -> _Ahead:
        """Have the policies move a batch, in the side stream."""
        if self._self_stream is None:
            return _Ahead(batch, None, None, None)
        targets = Targets.of(batch)
        try:
            with torch.xpu.stream(self._self_stream):
                moved = manager().hook.xpu_move_batch(trainer=self._self_trainer, batch=batch)
            if moved is None:
                return _Ahead(batch, None, None, None)
            return _Ahead(moved, targets, moved.get("batch_idx"), self._self_stream.record_event())
        except RuntimeError as error:
            # Ultralytics halves the batch when a step runs out of memory; out here the error would end the run.
            self._self_stream = None
            _LOGGER.warning(
                "XPU: a batch couldn't be copied to the device ahead of its step. From here on each is copied in its "
                f"own, which takes less memory: {error}"
            )
            return _Ahead(batch, None, None, None)

    def _self_hand_out(self, ahead: _Ahead) -> dict[str, Any]:
        """Let the current stream wait for a batch, and its memory be kept until that stream is done with it."""
        self._self_handed_out = None
        if ahead.there is not None:
            current = torch.xpu.current_stream(self._self_trainer.device)
            current.wait_event(ahead.there)
            for tensor in _on_device(ahead.batch):
                tensor.record_stream(current)
            self._self_handed_out = ahead
        return ahead.batch


def _on_device(value: Any) -> Iterator[torch.Tensor]:
    """Return the tensors of a nested value that are on an XPU."""
    if isinstance(value, torch.Tensor):
        if value.device.type == "xpu":
            yield value
    elif isinstance(value, dict):
        for nested in value.values():
            yield from _on_device(nested)
    elif isinstance(value, (list, tuple)):
        for nested in value:
            yield from _on_device(nested)
