"""A training batch whose copy to the device was begun ahead of its step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["AheadBatch", "changes_batches"]


class AheadBatch(dict[str, Any]):
    """A batch as its loader made it, on the host, which knows its copies on the device.

    To everybody who reads, changes, copies or pickles it, it is a plain dict of what the loader gave.

    Args:
        batch: The batch, by key.
        moved: The same with copies on the device.
        wait: Makes the current stream wait for the copies, and keeps their memory until that stream has used them.
    """

    def __init__(self, batch: Mapping[str, Any], moved: Mapping[str, Any], wait: Callable[[], None]) -> None:
        super().__init__(batch)
        self._loaded = {key: (value, _version(value)) for key, value in batch.items()}
        self._moved, self._wait = dict(moved), wait

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def arrive(self) -> dict[str, Any] | None:
        """Let go of the copies on the device.

        Returns:
            The batch, on the device but for values that were added since; None where one that the loader gave was
            changed, so that the copies aren't of what it is now.
        """
        unchanged = all(
            key in self and self[key] is value and _version(value) == version
            for key, (value, version) in self._loaded.items()
        )
        added = {key: value for key, value in self.items() if key not in self._loaded}
        arrived = {**self._moved, **added} if unchanged else None
        self._wait()
        self.release()
        return arrived

    def release(self) -> None:
        """Let go of the copies on the device."""
        self._loaded, self._moved, self._wait = {}, {}, _nothing

    @property
    def is_moved(self) -> bool:
        """Whether there are copies on the device still."""
        return bool(self._moved)


def changes_batches(trainer: Any) -> type | None:
    """Return the class of a user's that has a `preprocess_batch`, which may change batches in ways that can't be told.

    Args:
        trainer: The trainer.
    """
    for owner in type(trainer).__mro__:
        if "preprocess_batch" in vars(owner):
            return None if owner.__module__.partition(".")[0] == "ultralytics" else owner
    return None


def _version(value: object) -> int | None:
    """Return a number that changes with a tensor's contents; None for other values and for inference tensors."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else None


def _nothing() -> None:
    pass
