"""A training batch whose copy to the device was begun ahead of its step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["AheadBatch"]


class AheadBatch(dict[str, Any]):
    """A batch as its loader made it, on the host, which knows its copies on the device.

    To everybody who reads or changes it, it is a plain dict of what the loader gave.

    Args:
        batch: The batch, by key.
        moved: The same with copies on the device.
        wait: Makes the current stream wait for the copies, and keeps their memory until that stream has used them.
    """

    def __init__(self, batch: Mapping[str, Any], moved: Mapping[str, Any], wait: Callable[[], None]) -> None:
        super().__init__(batch)
        self._loaded, self._moved, self._wait = dict(batch), dict(moved), wait

    def arrive(self) -> dict[str, Any]:
        """Return the batch on the device and let go of the copies; a value that was replaced since stays as it is."""
        self._wait()
        arrived = {
            key: self._moved[key] if key in self._moved and value is self._loaded.get(key, _ABSENT) else value
            for key, value in self.items()
        }
        arrived.update({k: v for k, v in self._moved.items() if k not in self._loaded})  # a policy's own
        self.release()
        return arrived

    def release(self) -> None:
        """Let go of the copies on the device."""
        self._loaded, self._moved, self._wait = {}, {}, lambda: None

    @property
    def is_moved(self) -> bool:
        """Whether there are copies on the device still."""
        return bool(self._moved)


_ABSENT = object()
