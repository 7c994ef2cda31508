"""One measurement: a training or an inference that runs until its window has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..synthetic import MANY, draw
from .cases import PURE_BF16, WARMUP, WINDOW_SECONDS, Case, Implementation, Sizes, Window
from .isolation import clear
from .model import Model
from .pure_bf16 import has_bf16_weights, with_bf16_weights
from .telemetry import Sampler
from .timers import Timer, WallTimer

__all__ = ["Clock", "Job", "NotMeasured", "Stop", "infer", "train"]

WARMUP_SECONDS = 5
"""A warm-up that has lasted this long after its first step, which is slow, ends early."""


class NotMeasured(Exception):  # noqa: N818 - not an error of the run
    """What ran isn't what was to be measured."""


@dataclass(frozen=True)
class Job:
    """What all measurements have in common.

    Attributes:
        model: The model.
        settings: Sizes and lengths.
        scratch: The directory for the trainer's own files.
        data: What Ultralytics takes as `data`.
        readings: What to read of each device, by its name.
        on_step: Called after each step.
        arguments: Further arguments of each training.
        timer: Makes what measures a window, of a device's index.
        seconds: How long a window lasts at most.
    """

    model: Model
    settings: Sizes
    scratch: Path
    data: Path
    readings: dict[str, list[str]]
    on_step: Callable[[], object]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    timer: Callable[[int | None], Timer] = WallTimer
    seconds: float = WINDOW_SECONDS

    def clock(self, case: Case) -> Clock:
        """Free the device's memory, and return a clock for a measurement on it."""
        clear(case.device.index)
        sampler = Sampler(case.device.index, self.readings.get(case.device.name, []))
        return Clock(case, self.settings, sampler, self.on_step, self.timer(case.device.index), self.seconds)


class Clock:
    """Counts steps, and measures a window of them after the warm-up.

    Args:
        case: What runs.
        settings: The length of a window.
        sampler: Takes readings during the window.
        on_step: Called after each step.
        timer: Measures the window.
        seconds: How long it lasts at most.
    """

    def __init__(
        self,
        case: Case,
        settings: Sizes,
        sampler: Sampler,
        on_step: Callable[[], object],
        timer: Timer | None = None,
        seconds: float = WINDOW_SECONDS,
    ) -> None:
        self._index = case.device.index
        self._timer = timer or WallTimer(self._index)
        self._settings = settings
        self._seconds = seconds
        self._sampler = sampler
        self._on_step = on_step
        self._first_step: float | None = None
        self._start: float | None = None
        self.warmup_steps = self.steps = 0

    @property
    def in_window(self) -> bool:
        """Whether the warm-up is over."""
        return self._start is not None

    def step(self, cycle: int = 1) -> Window | None:
        """Count a step.

        Args:
            cycle: Number of steps per optimizer step; a window has a multiple of them.

        Returns:
            The window, once it has ended.
        """
        self._on_step()
        now = time.perf_counter()
        if self._start is None:
            self.warmup_steps += 1
            if self._first_step is None:
                self._first_step = now
            elif self.warmup_steps >= WARMUP or now - self._first_step > WARMUP_SECONDS:
                self._timer.start()
                self._start = time.perf_counter()
                self._sampler.start()
            return None
        self.steps += 1
        ended = self.steps >= self._settings.steps or now - self._start > self._seconds
        if not ended or self.steps % cycle:
            return None
        seconds = self._timer.stop()
        return self._window(seconds, time.perf_counter() - self._start)

    def stop(self) -> None:
        """End the readings."""
        self._sampler.stop()

    def _window(self, seconds: float, wall_seconds: float) -> Window:
        memory = {}
        for kind in ("allocated", "reserved"):
            peak: Any = getattr(torch.xpu, f"max_memory_{kind}", None)  # 2.5.1 and later
            if self._index is not None and peak is not None:
                memory[kind] = int(peak(self._index))
        return Window(
            images=self.steps * self._settings.batch,
            seconds=seconds,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            memory=memory,
            telemetry=self._sampler.stop(),
            wall_seconds=wall_seconds,
        )


class Stop(BaseException):
    """Leaves a trainer's loop. Not an `Exception`: a trainer may retry after one."""

    def __init__(self, window: Window | None, reason: str = "") -> None:
        self.window = window
        self.reason = reason


class _Callbacks:
    """A trainer's callbacks, which measure its steps."""

    def __init__(self, clock: Clock, case: Case, settings: Sizes) -> None:
        self._clock = clock
        self._case = case
        self._settings = settings
        self._last_end = 0.0
        self._waited = 0.0
        self._optimizer_steps = 0
        self._checked = False

    def batch_start(self, trainer: Any) -> None:
        """Check that the trainer runs the case, and add up how long it waited for batches."""
        if trainer.batch_size != self._settings.batch:
            asked = self._settings.batch
            raise Stop(None, f"out of memory with batch {asked} (the trainer continued with {trainer.batch_size})")
        if not self._checked:
            self._checked = True
            _check_precision(trainer, self._case)
            _check_compiled(trainer.model, self._case)
            trainer.optimizer.register_step_post_hook(self._optimizer_stepped)
        elif self._clock.in_window:
            self._waited += time.perf_counter() - self._last_end

    def batch_end(self, trainer: Any) -> None:
        """Count the step, and leave the trainer's loop at the end of the window."""
        cycle = max(int(trainer.accumulate), 1)
        if window := self._clock.step(cycle):
            steps = (self._optimizer_steps, window.steps // cycle)
            raise Stop(replace(window, waiting_seconds=self._waited, optimizer_steps=steps))
        self._last_end = time.perf_counter()

    def _optimizer_stepped(self, *args: object) -> None:
        self._optimizer_steps += self._clock.in_window


def train(job: Job, case: Case, implementation: Implementation) -> Window:
    """Train until a window has ended.

    Args:
        job: What all measurements have in common.
        case: Device, precision and compilation.
        implementation: Whose trainer.

    Raises:
        NotMeasured: It ran in another precision, with another batch, or not compiled.
        Exception: Any error of a trainer.
    """
    clock = job.clock(case)
    ours = implementation == "ours"
    trainer_class: Any = job.model.ours if ours else job.model.plain
    if case.precision == PURE_BF16:
        trainer_class = with_bf16_weights(trainer_class)
    trainer = trainer_class(overrides=_arguments(job, case, ours))
    # A trainer empties the cache after an epoch that filled half of the device. Here an epoch has a few steps instead
    # of thousands, so that this would cost a hundred times as much as in practice.
    trainer._clear_memory = lambda *args, **kwargs: None
    callbacks = _Callbacks(clock, case, job.settings)
    trainer.add_callback("on_train_batch_start", callbacks.batch_start)
    trainer.add_callback("on_train_batch_end", callbacks.batch_end)
    try:
        trainer.train()
    except Stop as stop:
        if stop.window is None:
            raise NotMeasured(stop.reason) from None
        return stop.window
    finally:
        clock.stop()
        _tear_down(trainer)
        if case.compile:
            torch._dynamo.reset()
    raise NotMeasured("the training ended before the window did")


def _arguments(job: Job, case: Case, ours: bool) -> dict[str, Any]:
    named: dict[str, Any] = {"fp32": False, "fp16": True, "bf16": "bf16", PURE_BF16: False}
    arguments = {
        "mode": "train",
        "task": job.model.task,
        "model": job.model.file,
        "data": str(job.data),
        "project": str(job.scratch),
        "name": "run",
        "exist_ok": True,
        "imgsz": job.settings.imgsz,
        "batch": job.settings.batch,
        "device": case.device.name,
        "amp": case.precision if ours else named[case.precision],
        "cache": "ram",
        "epochs": 100_000,  # more than any window takes
        "patience": 0,
        "val": False,
        "save": False,
        "plots": False,
        "verbose": False,
        "optimizer": "AdamW",  # what "auto" chooses for a run of up to 10 000 steps
        "lr0": 1e-5,  # synthetic images teach nothing, and with an infinite loss the optimizer would skip steps
        "warmup_epochs": 0.0,  # during warm-up the number of steps per optimizer step grows
        # augmentation takes time on the host, and the device is to be measured
        **dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "erasing"), 0.0),
        "close_mosaic": 0,
        "auto_augment": None,
        **({"xpu_tuned": False} if ours else {}),
        **job.arguments,
        **case.arguments,
    }
    if case.compile:
        arguments |= {"compile": True, **({"xpu_compare_compiled": False} if ours else {})}
    return arguments


def _check_precision(trainer: Any, case: Case) -> None:
    if case.precision == PURE_BF16:
        if not has_bf16_weights(trainer):
            raise Stop(None, "the trainer cast weights that were bf16 to another precision")
        return
    if getattr(trainer, "xpu", None) is not None:
        actual, reason = trainer.xpu.precision.name, trainer.xpu.precision.reason
    else:
        actual, reason = (str(trainer.args.amp) if trainer.args.amp == "bf16" else "fp16"), "Ultralytics' choice"
        actual = actual if trainer.amp else "fp32"
    if actual != case.precision:
        raise Stop(None, f"the training ran in {actual} ({reason})")


def _check_compiled(model: Any, case: Case) -> None:
    if case.compile and not hasattr(model, "_orig_mod"):
        raise Stop(None, "Ultralytics couldn't compile the model, and continued without")


def _tear_down(trainer: Any) -> None:
    """Do what happens at the end of a training: end the loaders' workers, allow nondeterminism."""
    from ultralytics.utils import torch_utils

    for name in ("train_loader", "test_loader"):
        close = getattr(getattr(trainer, name, None), "close", None)  # before 8.4 or so the loader's deletion does it
        if close is not None:
            close()
    getattr(torch_utils, "unset_deterministic", lambda: None)()


def infer(job: Job, case: Case, implementation: Implementation) -> Window:
    """Predict until a window has ended; see `train`."""
    from ultralytics import YOLO
    from ultralytics.utils import DEFAULT_CFG_DICT

    clock = job.clock(case)
    settings, rng = job.settings, np.random.default_rng(0)
    images = [draw(settings.imgsz, rng, len(job.model.names), MANY).image for _ in range(settings.batch)]
    half: Any = {"quantize": 16} if "quantize" in DEFAULT_CFG_DICT else {"half": True}
    options: dict[str, Any] = {
        "device": case.device.name,
        "imgsz": settings.imgsz,
        "verbose": False,
        **(half if case.precision == "fp16" else {}),
        **({"compile": True} if case.compile else {}),
    }
    model = YOLO(job.model.file)
    try:
        while True:
            model.predict(images, **options)
            if window := clock.step():
                backend = model.predictor.model
                if bool(backend.fp16) != (case.precision == "fp16"):
                    raise NotMeasured(f"Ultralytics predicted in {'fp16' if backend.fp16 else 'fp32'}")
                _check_compiled(backend, case)
                return window
    except Stop as stop:
        raise NotMeasured(stop.reason) from None
    finally:
        clock.stop()
        if case.compile:
            torch._dynamo.reset()
