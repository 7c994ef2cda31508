"""One measurement: a training or an inference that runs until its window has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .data import images
from .isolation import clear
from .models import Subject
from .results import Case, Implementation, Window
from .settings import WARMUP, WINDOW_SECONDS, Settings
from .telemetry import Sampler

__all__ = ["NotMeasured", "infer", "train"]

WARMUP_SECONDS = 5
"""A warm-up that has lasted this long since its first step, the slow one, ends too."""


class NotMeasured(Exception):  # noqa: N818 - nothing went wrong but the figure
    """What ran wasn't what was to be measured."""


class Clock:
    """Counts steps, and measures a window of them once the warm-up is over.

    Args:
        case: What runs.
        settings: How long a window is.
        sampler: Reads beside the window.
        on_step: Called after each step.
    """

    def __init__(self, case: Case, settings: Settings, sampler: Sampler, on_step: Callable[[], object]) -> None:
        self._index = case.target.index
        self._settings = settings
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
        """Note that a step is done.

        Args:
            cycle: A window has a multiple of so many steps, for only together do they hold what belongs to a step.

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
                self._start = self._now()
                self._sampler.start()
            return None
        self.steps += 1
        ended = self.steps >= self._settings.steps or now - self._start > WINDOW_SECONDS
        if not ended or self.steps % cycle:
            return None
        return self._window(self._now() - self._start)

    def stop(self) -> None:
        """End what runs beside the steps, wherever they ended."""
        self._sampler.stop()

    def _window(self, seconds: float) -> Window:
        memory = {}
        for kind in ("allocated", "reserved"):
            peak: Any = getattr(torch.xpu, f"max_memory_{kind}", None)  # since torch 2.6
            if self._index is not None and peak is not None:
                memory[kind] = int(peak(self._index))
        return Window(
            images=self.steps * self._settings.batch,
            seconds=seconds,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            memory=memory,
            telemetry=self._sampler.stop(),
        )

    def _now(self) -> float:
        """Return the time at which the device has done everything that it was given."""
        if self._index is not None:
            torch.xpu.synchronize(self._index)
        return time.perf_counter()


class _Left(BaseException):
    """Leaves a trainer's loop. No `Exception`, for a trainer may try again after one."""

    def __init__(self, window: Window | None, reason: str = "") -> None:
        self.window = window
        self.reason = reason


class _Watch:
    """Two callbacks of a trainer, which see each of its steps."""

    def __init__(self, clock: Clock, case: Case, settings: Settings) -> None:
        self._clock = clock
        self._case = case
        self._settings = settings
        self._left_at = 0.0
        self._waited = 0.0
        self._optimizer_steps = 0
        self._watched = False

    def batch_start(self, trainer: Any) -> None:
        """See whether the trainer does what is measured, and how long it waited for its batch."""
        if trainer.batch_size != self._settings.batch:
            asked = self._settings.batch
            raise _Left(None, f"out of memory with batch {asked} (the trainer goes on with {trainer.batch_size})")
        if not self._watched:
            self._watched = True
            _check_precision(trainer, self._case)
            _check_compiled(trainer.model, self._case)
            trainer.optimizer.register_step_post_hook(self._optimizer_stepped)
        elif self._clock.in_window:
            self._waited += time.perf_counter() - self._left_at

    def batch_end(self, trainer: Any) -> None:
        """Count the step, and leave the trainer at the window's end."""
        cycle = max(int(trainer.accumulate), 1)
        if window := self._clock.step(cycle):
            steps = (self._optimizer_steps, window.steps // cycle)
            raise _Left(Window(**{**vars(window), "waiting_seconds": self._waited, "optimizer_steps": steps}))
        self._left_at = time.perf_counter()

    def _optimizer_stepped(self, *args: object) -> None:
        self._optimizer_steps += self._clock.in_window


def train(
    subject: Subject,
    case: Case,
    implementation: Implementation,
    settings: Settings,
    data: Path,
    readings: list[str],
    on_step: Callable[[], object],
) -> Window:
    """Train until a window has ended.

    Args:
        subject: The model.
        case: Device, precision and compilation.
        implementation: Whose trainer.
        settings: Sizes.
        data: What `write` returned; the trainer's own files go beside it.
        readings: What to read of the device.
        on_step: Called after each step.

    Raises:
        NotMeasured: It ran in another precision, with another batch, or not compiled.
        Exception: Whatever a trainer raises.
    """
    clear(case.target.index)
    ours = implementation == "ours"
    trainer_class: Any = subject.ours if ours else subject.plain
    trainer = trainer_class(overrides=_arguments(subject, case, settings, data, ours))
    # It empties the cache after an epoch that filled half of the device. Epochs take a few steps here, and a real one
    # thousands, so that this would cost a hundred times what it does.
    trainer._clear_memory = lambda *args, **kwargs: None
    clock = Clock(case, settings, Sampler(case.target.index, readings), on_step)
    watch = _Watch(clock, case, settings)
    trainer.add_callback("on_train_batch_start", watch.batch_start)
    trainer.add_callback("on_train_batch_end", watch.batch_end)
    try:
        trainer.train()
    except _Left as left:
        if left.window is None:
            raise NotMeasured(left.reason) from None
        return left.window
    finally:
        clock.stop()
        _tidy_up(trainer)
        if case.compile:
            torch._dynamo.reset()
    raise NotMeasured("the training ended before the window did")


def _arguments(subject: Subject, case: Case, settings: Settings, data: Path, ours: bool) -> dict[str, Any]:
    named: dict[str, Any] = {"fp32": False, "fp16": True, "bf16": "bf16"}
    arguments = {
        "mode": "train",
        "task": subject.task,
        "model": subject.file,
        "data": str(data),
        "project": str(data.parent),
        "name": "run",
        "exist_ok": True,
        "imgsz": settings.imgsz,
        "batch": settings.batch,
        "device": case.target.name,
        "amp": case.precision if ours else named[case.precision],
        "cache": "ram",
        "epochs": 100_000,  # more than any window takes
        "patience": 0,
        "val": False,
        "save": False,
        "plots": False,
        "verbose": False,
        "optimizer": "AdamW",  # what "auto" takes for a run of up to 10 000 steps
        "lr0": 1e-5,  # rectangles on noise teach nothing, and a loss that is infinite saves steps
        "warmup_epochs": 0.0,  # in which the number of steps between two optimizer steps grows
        # what changes images costs the host time, and the device is to be measured
        **dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "erasing"), 0.0),
        "close_mosaic": 0,
        "auto_augment": None,
    }
    return {**arguments, "compile": True} if case.compile else arguments


def _check_precision(trainer: Any, case: Case) -> None:
    if getattr(trainer, "xpu", None) is not None:
        actual, reason = trainer.xpu.precision.name, trainer.xpu.precision.reason
    else:
        actual, reason = (str(trainer.args.amp) if trainer.args.amp == "bf16" else "fp16"), "Ultralytics says so"
        actual = actual if trainer.amp else "fp32"
    if actual != case.precision:
        raise _Left(None, f"the training ran in {actual} ({reason})")


def _check_compiled(model: Any, case: Case) -> None:
    if case.compile and not hasattr(model, "_orig_mod"):
        raise _Left(None, "Ultralytics found that it can't compile here, and went on without")


def _tidy_up(trainer: Any) -> None:
    """Do what the end of a training would have done: end the loaders' workers, allow indeterminism."""
    from ultralytics.utils import torch_utils

    for name in ("train_loader", "test_loader"):
        close = getattr(getattr(trainer, name, None), "close", None)  # before 8.4 or so a loader's end does it
        if close is not None:
            close()
    getattr(torch_utils, "unset_deterministic", lambda: None)()


def infer(
    subject: Subject,
    case: Case,
    implementation: Implementation,
    settings: Settings,
    data: Path,
    readings: list[str],
    on_step: Callable[[], object],
) -> Window:
    """Predict until a window has ended; see `train`."""
    from ultralytics import YOLO
    from ultralytics.utils import DEFAULT_CFG_DICT

    clear(case.target.index)
    pictures = [image for image, _ in images(settings.batch, settings.imgsz)]
    half: Any = {"quantize": 16} if "quantize" in DEFAULT_CFG_DICT else {"half": True}
    options: dict[str, Any] = {
        "device": case.target.name,
        "imgsz": settings.imgsz,
        "verbose": False,
        **(half if case.precision == "fp16" else {}),
        **({"compile": True} if case.compile else {}),
    }
    clock = Clock(case, settings, Sampler(case.target.index, readings), on_step)
    model = YOLO(subject.file)
    try:
        while True:
            model.predict(pictures, **options)
            if window := clock.step():
                backend = model.predictor.model
                if bool(backend.fp16) != (case.precision == "fp16"):
                    raise NotMeasured(f"Ultralytics predicted in {'fp16' if backend.fp16 else 'fp32'}")
                _check_compiled(backend, case)
                return window
    except _Left as left:
        raise NotMeasured(left.reason) from None
    finally:
        clock.stop()
        if case.compile:
            torch._dynamo.reset()
