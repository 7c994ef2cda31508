"""The most memory that a training holds at each moment: set-up, steps, a halved batch, validation, saving."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

import xpu_simulator

from .counting import SETTINGS, settle

__all__ = ["MOMENTS", "peaks"]

_METHODS = {
    "_setup_train": "set-up",
    "validate": "validation",
    "save_model": "save",
    "final_eval": "final evaluation",
}
_STEPS = ("first step", "", "first step of a halved batch", "later step")  # the second is interrupted at any point
MOMENTS = ("set-up", *filter(None, _STEPS), "validation", "save", "final evaluation")


class _Peaks:
    """The most bytes that tensors held at each moment; a moment within another counts for both."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self._open: list[str] = []

    @contextmanager
    def moment(self, name: str) -> Iterator[None]:
        self._note()
        self._open.append(name)
        try:
            yield
        finally:
            self._note()
            self._open.pop()

    def _note(self) -> None:
        held = torch.xpu.max_memory_allocated()
        for name in self._open:
            self.bytes[name] = max(held, self.bytes.get(name, 0))
        torch.xpu.reset_peak_memory_stats()


def peaks(
    trainer: type, model: str, data: str, options: Mapping[str, Any], around: Callable[[], Any] = nullcontext
) -> dict[str, int]:
    """Train for two epochs, in whose first the second batch runs out of memory and is halved.

    Args:
        trainer: An Ultralytics trainer, or one of ours.
        model: The model's YAML file.
        data: The data set.
        options: Arguments of `train()` beside `SETTINGS`.
        around: What holds for as long as it trains.

    Returns:
        The bytes, by moment.
    """
    from ultralytics import YOLO

    found = _Peaks()
    gc.collect()  # a trainer and its model are a cycle: the last one's would count
    with around():
        yolo = YOLO(model)
        for event, callback in _steps(found).items():
            yolo.add_callback(event, callback)
        yolo.train(trainer=_measured(trainer, found), data=data, **{**SETTINGS, **options})
    return found.bytes


def _measured(trainer: type, found: _Peaks) -> type:
    """Return a trainer that measures its methods."""

    def measured(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any) -> Any:
            with found.moment(_METHODS[name]):
                return getattr(super(made, self), name)(*args)  # type: ignore[misc]

        return method

    made = type(trainer.__name__, (trainer,), {name: measured(name) for name in _METHODS})
    return made


def _steps(found: _Peaks) -> dict[str, Callable[[Any], None]]:
    """Return callbacks that measure the steps, and order the second to run out of memory."""
    steps = 0
    under_way: list[Any] = []

    def end(trainer: Any = None) -> None:
        if under_way:
            under_way.pop().__exit__(None, None, None)

    def start(trainer: Any) -> None:
        nonlocal steps
        end()
        if steps == 1:
            xpu_simulator.faults.out_of_memory(at_launch=50)
        if name := _STEPS[min(steps, len(_STEPS) - 1)]:
            under_way.append(found.moment(name))
            under_way[-1].__enter__()
        steps += 1

    return {
        "on_train_start": settle,
        "on_train_epoch_start": end,
        "on_train_batch_start": start,
        "on_train_batch_end": end,
    }
