"""Training batches whose copies to the device were begun ahead of their steps, and who may change a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .patches import is_upstream
from .run import StashKey

__all__ = ["AHEAD", "AheadBatches", "changes_batches"]


@dataclass
class _Ahead:
    """A batch on the host, what its loader gave with the versions of it, and its copies on the device."""

    batch: dict[str, Any]
    loaded: dict[str, tuple[Any, int | None]]
    moved: dict[str, Any]
    wait: Callable[[], bool]


class AheadBatches:
    """The batches of a run that were copied ahead: plain dicts of what their loader gave, known by their identity."""

    def __init__(self) -> None:
        self._ahead: list[_Ahead] = []

    def note(self, batch: dict[str, Any], moved: Mapping[str, Any], wait: Callable[[], bool]) -> None:
        """Note the copies of a batch.

        Args:
            batch: The batch on the host, by key.
            moved: The same with copies on the device.
            wait: Makes the current stream wait for the copies, and keeps their memory until that stream has used them.
                Tells whether it did: otherwise the copies aren't used.
        """
        loaded = {key: (value, _version(value)) for key, value in batch.items()}
        self._ahead.append(_Ahead(batch, loaded, dict(moved), wait))

    def arrive(self, batch: object) -> dict[str, Any] | None:
        """Let go of the copies of a batch.

        Returns:
            The batch, on the device but for values that were added since; None where there are no copies to be used,
            or one of the values that the loader gave was changed, so that they aren't of what it is now.
        """
        if (ahead := self._pop(batch)) is None:
            return None
        if not ahead.wait():
            return None
        now, loaded = ahead.batch, ahead.loaded
        if not all(k in now and now[k] is value and _version(value) == v for k, (value, v) in loaded.items()):
            return None
        return {**ahead.moved, **{key: value for key, value in now.items() if key not in loaded}}

    def forget(self, batch: object) -> None:
        """Let go of the copies of a batch that nobody asked for."""
        self._pop(batch)

    def release(self) -> None:
        """Let go of all copies."""
        self._ahead.clear()

    def _pop(self, batch: object) -> _Ahead | None:
        for i, ahead in enumerate(self._ahead):
            if ahead.batch is batch:
                return self._ahead.pop(i)
        return None


AHEAD = StashKey[AheadBatches]()


def changes_batches(trainer: Any) -> str:
    """Return the name of users' code that gets batches before Ultralytics' `preprocess_batch`, "" where there is none.

    It may change them in ways that can't be told: by NumPy, or by `tensor.data`.

    Args:
        trainer: The trainer.
    """
    for owner in type(trainer).__mro__:
        if method := vars(owner).get("preprocess_batch"):
            return "" if is_upstream(method) else f"{owner.__name__}.preprocess_batch"
    return ""


def _version(value: object) -> int | None:
    """Return a number that changes with a tensor's contents; None for other values and for inference tensors."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else None
