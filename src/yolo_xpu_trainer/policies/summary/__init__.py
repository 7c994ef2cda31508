"""What a run was waiting for: one line at its end, and `xpu_summary.json` in its folder.

The host's time is divided among what it did. Nothing is asked of the device for that: the time is taken where the host
waits for it anyway, and that is known. Other waits, such as most of those in the losses of OBB and YOLO26-seg, can't be
told from the work of submitting kernels, and count as steps. `xpu_plugins=-summary` switches this off.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...files import replacing
from ...hookspecs import hookimpl
from ...own_code import says
from ...patches import Patch, stand_in
from ...run import Run, StashKey
from ...stopwatch import STEPS, STOPWATCH, TARGETS, Stopwatch, timed, timed_batches
from ...telemetry import Sampler
from .figures import COPIES, OTHER, SAVING, SETUP, VALIDATION, Summary

__all__: list[str] = []

_LOGGER = logging.getLogger("ultralytics")
_NAME = "xpu_summary.json"
_READ = ("utilization", "power_draw")  # of the driver
_EVERY = 5.0  # seconds between two readings


@dataclass
class _Noted:
    """What is known of a run beside its times."""

    peaks: Mapping[str, int]  # before it
    sampler: Sampler | None = None
    sampled_since: float = 0.0


_NOTED = StashKey[_Noted]()


@hookimpl(tryfirst=True)  # around everything that others do at a run's start and end
@contextmanager
def xpu_around_run(trainer: Any) -> Iterator[None]:
    """Count the time of a run, and say at its end where it went; of one that fails, in the file only."""
    run: Run = trainer.xpu
    if not _is_measured(run):
        yield
        return
    run.stash[STOPWATCH] = Stopwatch(SETUP)
    run.stash[_NOTED] = _Noted(_peaks(run))
    try:
        yield
    except BaseException:
        run.recovery.calling(_end, trainer, completed=False)
        raise
    else:
        run.recovery.calling(_end, trainer, completed=True)
    finally:
        if (sampler := run.stash[_NOTED].sampler) is not None:  # also where this policy was switched off
            sampler.stop()


def _is_measured(run: Run) -> bool:
    """Whether a run's time is counted in this process: of several GPUs in that of the first."""
    if len(run.indices) > 1 and not run.is_worker:
        return False  # its workers train
    return os.environ.get("RANK", "-1") in ("-1", "0")


@hookimpl
def xpu_after_setup(trainer: Any) -> None:
    """Tell epochs from what lies between them, and have the driver's readings taken while it trains."""
    if STOPWATCH not in trainer.xpu.stash:
        return
    guarded = trainer.xpu.recovery.guarded
    trainer.add_callback("on_train_start", guarded(_start))
    trainer.callbacks["on_train_epoch_start"].insert(0, guarded(_begin_epoch))
    trainer.add_callback("on_train_epoch_end", guarded(_end_epoch))


def _start(trainer: Any) -> None:
    run: Run = trainer.xpu
    run.stash[STOPWATCH].phase = OTHER
    noted = run.stash[_NOTED]
    if noted.sampler is not None:  # of this trainer's first run
        return
    noted.sampler, noted.sampled_since = Sampler(run.device.index, _READ, _EVERY), time.perf_counter()
    noted.sampler.start()


def _begin_epoch(trainer: Any) -> None:
    trainer.xpu.stash[STOPWATCH].phase = STEPS


def _end_epoch(trainer: Any) -> None:
    trainer.xpu.stash[STOPWATCH].phase = OTHER


@hookimpl(tryfirst=True)  # before prefetching's, which is to get the loader from Ultralytics
def xpu_patches(trainer: Any) -> list[Patch]:
    """Take the time of what the host waits for in epochs."""

    @stand_in("ultralytics.engine.trainer:enumerate", why="nobody would know how long a run waits for data")
    def enumerate_timed(run: Run, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a stand-in for `enumerate`, by which Ultralytics goes through an epoch's batches."""

        def enumerating(iterable: Any, *args: Any, **kwargs: Any) -> Any:
            ours = iterable is getattr(trainer, "train_loader", None)
            return original(timed_batches(run, iterable) if ours else iterable, *args, **kwargs)

        return enumerating

    return [enumerate_timed, _BOX_METRICS] if _is_measured(trainer.xpu) else []


class _Mask(torch.Tensor):
    """A boolean mask whose `nonzero()` is timed; in everything else it is the plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _run: Run

    def nonzero(self, *args: Any, **kwargs: Any) -> Any:
        plain = self.as_subclass(torch.Tensor)  # type: ignore[no-untyped-call]
        with timed(self._run, TARGETS):
            return plain.nonzero(*args, **kwargs)


def _watched(run: Run, mask: torch.Tensor) -> torch.Tensor:
    if run.stash[STOPWATCH].phase != STEPS or mask.device.type != "xpu":
        return mask
    watched: _Mask = mask.bool().as_subclass(_Mask)  # type: ignore[no-untyped-call]
    watched._run = run
    return watched


def _get_box_metrics(run: Run, original: Callable[..., Any]) -> Callable[..., Any]:
    # Not by `patch`: a tuple of arguments would hold the mask as it is given, in float32, through all of the original.
    @functools.wraps(original)
    def get_box_metrics(
        self: Any,
        pd_scores: Any,
        pd_bboxes: Any,
        gt_labels: Any,
        gt_bboxes: Any,
        mask_gt: Any,
        *more: Any,
        **extra: Any,
    ) -> Any:
        """Compute how well anchors and labels go together, after the anchors that lie in a box were found."""
        mask_gt = run.recovery.calling(_watched, run, mask_gt, instead=lambda run, mask: mask)
        return original(self, pd_scores, pd_bboxes, gt_labels, gt_bboxes, mask_gt, *more, **extra)

    return get_box_metrics


_BOX_METRICS = Patch(
    "ultralytics.utils.tal:TaskAlignedAssigner.get_box_metrics",
    why="nobody would know how long a run waits for the device: in most losses that happens here first",
    replacement=_get_box_metrics,
    # Before 8.4.120 or so it indexes with the mask, of which the policy `foreground` knows.
    needed=says("mask_gt.nonzero("),
)


@hookimpl(wrapper=True, trylast=True)
def xpu_move_batch(trainer: Any, batch: dict[str, Any]) -> Generator[None, Any, Any]:
    """Take the time of a batch's copies."""
    with timed(trainer.xpu, COPIES):
        return (yield)


@hookimpl(tryfirst=True)
@contextmanager
def xpu_around_validation(trainer: Any) -> Iterator[None]:
    with _during(trainer, VALIDATION):
        yield


@hookimpl(tryfirst=True)
@contextmanager
def xpu_around_save(trainer: Any) -> Iterator[None]:
    with _during(trainer, SAVING):
        yield


def _during(trainer: Any, what: str) -> contextlib.AbstractContextManager[None]:
    stash = trainer.xpu.stash
    return stash[STOPWATCH].during(what) if STOPWATCH in stash else contextlib.nullcontext()


def _peaks(run: Run) -> dict[str, int]:
    """Return the most bytes that this process has had on the device so far, as far as PyTorch can tell."""
    found = {}
    for kind in ("allocated", "reserved"):
        peak: Any = getattr(torch.xpu, f"max_memory_{kind}", None)  # 2.5.1 and later
        with contextlib.suppress(RuntimeError):
            if peak is not None:
                found[kind] = int(peak(run.device.index))
    return found


def _end(trainer: Any, completed: bool) -> None:
    """Write what is known of a run that had at least one batch."""
    run: Run = trainer.xpu
    watch, noted = run.stash[STOPWATCH], run.stash[_NOTED]
    watch.stop()
    if noted.sampler is not None:
        noted.sampler.stop()
    if not watch.batches:
        return
    summary = _summarize(trainer, watch, noted)
    with contextlib.suppress(OSError), replacing(Path(trainer.save_dir) / _NAME) as beside:
        beside.write_text(json.dumps({"completed": completed, **summary.as_dict()}, indent=2) + "\n", encoding="utf-8")
    if completed:
        _LOGGER.info(f"XPU: {summary}")


def _summarize(trainer: Any, watch: Stopwatch, noted: _Noted) -> Summary:
    run: Run = trainer.xpu
    readings = noted.sampler.readings if noted.sampler is not None else {}
    args, loader = trainer.args, getattr(trainer, "train_loader", None)
    return Summary(
        seconds=dict(watch.seconds),
        times=dict(watch.times),
        batches=watch.batches,
        images=watch.images * run.world_size,
        devices=run.world_size,
        device=str(run.device),
        integrated=run.device.integrated,
        total_memory=run.device.total_memory,
        peaks={kind: size for kind, size in _peaks(run).items() if size > noted.peaks.get(kind, 0)},
        readings={name: statistics.fmean(values) for name, values in readings.items()},
        sampled_seconds=time.perf_counter() - noted.sampled_since if readings else 0.0,
        batch=int(trainer.batch_size),
        nominal_batch=int(getattr(args, "nbs", 0) or 0),
        workers=max(int(getattr(each, name, 0) or 0) for each, name in ((loader, "num_workers"), (args, "workers"))),
        processors=_processors() // int(os.environ.get("LOCAL_WORLD_SIZE", len(run.indices))),
        cached=bool(getattr(args, "cache", False)),
    )


def _processors() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on Windows
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
