"""The next training batches are copied to the device in a stream of their own, while it works on the one at hand."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Any
from weakref import WeakSet

import torch
from torch.utils._pytree import tree_leaves

from ..batches import AHEAD, AheadBatches, changes_batches
from ..hookspecs import hookimpl
from ..numerics import Check, avoids
from ..options import Option
from ..patches import Patch, patch, stand_in
from ..run import Run, StashKey
from ..stopwatch import timed_batches

__all__ = ["LookAhead"]

_LOGGER = logging.getLogger("ultralytics")

PREFETCH = Option(
    "prefetch",
    1,
    "how many training batches are copied to the GPU ahead of their steps; needs `workers` and torch 2.6; `0` copies "
    "each in its own step, the default on an integrated GPU, which shares the host's memory",
    tried=(1, 0, 2),
    usual=lambda device: int(not device.integrated),
)


@hookimpl
def xpu_options() -> list[Option[int]]:
    return [PREFETCH]


def _lost(device: torch.device) -> float:
    """Return the share of bytes that don't arrive in copies from pinned memory in a stream of their own."""
    stream: Any = torch.xpu.Stream(device)  # type: ignore[no-untyped-call]
    drawn = torch.Generator().manual_seed(0)
    sent = [
        torch.empty(n, dtype=torch.int32, pin_memory=True).random_(generator=drawn) for n in (256, 100_000, 1_500_000)
    ]
    lost = 0.0
    for _ in range(3):
        with torch.xpu.stream(stream):
            there = [part.to(device, non_blocking=True) for part in sent]
            arrived = stream.record_event()
        torch.xpu.current_stream(device).wait_event(arrived)
        lost = max(lost, *(float((a.cpu() != b).double().mean()) for a, b in zip(there, sent, strict=True)))
    return lost


_SIDE_STREAM = Check(
    "copies in a side stream", torch.int32, _lost, 0, "share", instead="Each batch is copied in its own step"
)


@hookimpl
def xpu_numerics() -> list[Check]:
    return [_SIDE_STREAM]


@hookimpl
def xpu_patches(trainer: Any) -> list[Patch]:
    """Look ahead in whatever training loader there is in an epoch, as Ultralytics' loop goes through it."""
    run: Run = trainer.xpu
    depth = run.options.on(run.device, PREFETCH)
    if not depth:
        return []
    if (owner := changes_batches(trainer)) and not run.options.is_given(PREFETCH):
        _LOGGER.info(
            f"XPU: batches are not prefetched, because {owner} may change them on the host. "
            f"If it leaves them as they are until it calls super(), set {PREFETCH.key}=1."
        )
        return []
    if avoids(run, _SIDE_STREAM):
        return []
    ahead = run.stash[_LOOK_AHEAD] = LookAhead(trainer, depth)

    @stand_in("ultralytics.engine.trainer:enumerate", why="each batch would be copied to the device in its own step")
    def enumerate_ahead(run: Run, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a stand-in for `enumerate`, by which Ultralytics goes through an epoch's batches."""

        def enumerating(iterable: Any, *args: Any, **kwargs: Any) -> Any:
            return original(ahead.through(iterable) if ahead.applies_to(iterable) else iterable, *args, **kwargs)

        return enumerating

    @patch(
        "ultralytics.engine.trainer:BaseTrainer._clear_memory", why="batches of a loader that is replaced would be kept"
    )
    def clear_memory(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        """Let go of what was copied ahead, which only a run that is out of memory has when it clears memory."""
        ahead.release()
        return original(self, *args, **kwargs)

    return [enumerate_ahead, clear_memory]


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Keep nothing of an epoch that was left early, by a time limit or a callback, until its end."""
    if _LOOK_AHEAD in trainer.xpu.stash:
        trainer.add_callback("on_train_epoch_end", trainer.xpu.recovery.guarded(_release))


def _release(trainer: Any) -> None:
    trainer.xpu.stash[_LOOK_AHEAD].release()


class LookAhead:
    """Goes through a training loader's epoch, with the copies of its batches begun ahead of their steps.

    Nothing is fetched before the first batch is asked for, nor beyond the loader's own end.

    Args:
        trainer: The trainer, whose policies move the batches.
        depth: How many batches ahead.
    """

    def __init__(self, trainer: Any, depth: int) -> None:
        self._trainer = trainer
        self._depth = depth
        self._stream: Any = None
        self._failed = False
        self._iterations: WeakSet[Generator[Any, None, None]] = WeakSet()
        self._noted = trainer.xpu.stash[AHEAD] = AheadBatches()

    def applies_to(self, iterable: Any) -> bool:
        """Whether this is the training loader, has workers (else this process would load ahead), and can be kept."""
        return (
            iterable is getattr(self._trainer, "train_loader", None)
            and bool(getattr(iterable, "num_workers", 0))
            and not self._failed
            and _has_record_stream(self._trainer.device)
        )

    def through(self, loader: Any) -> Generator[Any, None, None]:
        """Iterate over a loader's batches, whose iterator is made at once, as `enumerate` does."""
        iteration = self._ahead_of(timed_batches(self._trainer.xpu, loader))
        self._iterations.add(iteration)
        return iteration

    def release(self) -> None:
        """Let go of every batch that is held; an iteration that was left early is over."""
        for iteration in list(self._iterations):
            iteration.close()
        self._noted.release()

    def _ahead_of(self, batches: Iterator[Any]) -> Generator[Any, None, None]:
        # No variable holds a batch here, because it would live until the next one is asked for.
        ahead: deque[Any] = deque()
        moving = map(self._move, batches)
        ahead.extend(islice(moving, self._depth))
        while True:
            ahead.extend(islice(moving, 1))
            if not ahead:
                return
            yield ahead[0]
            self._noted.forget(ahead.popleft())

    def _move(self, batch: Any) -> Any:
        """Have the policies move a batch, in the side stream."""
        if not self._failed and isinstance(batch, dict):
            self._trainer.xpu.recovery.calling(self._begin, batch)
        return batch

    def _begin(self, batch: dict[str, Any]) -> None:
        """Begin the copy of a batch, and note it."""
        device = self._trainer.device
        try:
            if self._stream is None:
                self._stream = torch.xpu.Stream(device)  # type: ignore[no-untyped-call]
            with torch.xpu.stream(self._stream):
                moved = self._trainer.xpu.hooks.xpu_move_batch(trainer=self._trainer, batch=batch)
            if moved is None:
                return
            there = self._stream.record_event()
        except torch.OutOfMemoryError as error:
            # Ultralytics halves the batch when a step runs out of memory; out here the error would end the run.
            self._failed = True
            _LOGGER.warning(
                "XPU: a batch couldn't be copied to the device ahead of its step. From here on each is copied in its "
                f"own step, which takes less memory: {error}"
            )
            return

        def wait() -> bool:
            current = torch.xpu.current_stream(device)
            current.wait_event(there)
            for leaf in tree_leaves(moved):
                if isinstance(leaf, torch.Tensor) and leaf.device.type == "xpu":
                    leaf.record_stream(current)
            return True

        recovery = self._trainer.xpu.recovery
        self._noted.note(batch, moved, recovery.guarded(wait, instead=lambda: False))


_LOOK_AHEAD = StashKey[LookAhead]()


def _has_record_stream(device: torch.device) -> bool:
    """Whether memory can be kept for another stream than its own: for XPUs since torch 2.6 (torch-xpu-ops#1047)."""
    try:
        torch.empty(1, device=device).record_stream(torch.xpu.current_stream(device))
    except NotImplementedError:
        return False
    return True
