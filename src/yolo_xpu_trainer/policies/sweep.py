"""A training on several data sets ends where its device is lost, instead of failing on each of the others, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..device_errors import is_lost
from ..patches import Patch, patch

__all__ = ["PATCHES"]


class _SweepEnds(BaseException):
    """Carries the error that ends a sweep past what goes on after every error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@patch(
    "ultralytics.engine.trainer:MultiTrainer.train",
    why="each further data set would fail on a device that this process can't use any more",
    optional=True,  # since 8.4.90 or so
)
def train(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Train on each data set; where a device is lost, keep the results of those before, and raise its error."""
    if self.trainer is None:  # each in a process of its own, which finds a device or doesn't
        return original(self, *args, **kwargs)
    before, self.trainer = self.trainer, _ending(self.trainer)
    try:
        return original(self, *args, **kwargs)
    except _SweepEnds as end:
        if self.trainers:
            self.save_results()
        raise end.error from None
    finally:
        self.trainer = before


def _ending(trainer: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes trainers of a kind, whose `train` ends a sweep where the device is lost."""

    def made(*args: Any, **kwargs: Any) -> Any:
        one = trainer(*args, **kwargs)
        inner = one.train

        def train(*args: Any, **kwargs: Any) -> Any:
            try:
                return inner(*args, **kwargs)
            except Exception as error:
                if is_lost(error):
                    raise _SweepEnds(error) from error
                raise

        one.train = train
        return one

    return made


PATCHES: list[Patch] = [train]
