"""The asynchrony mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import native


@contextmanager
def asynchronous() -> Iterator[None]:
    """Let non-blocking copies land late, as on hardware, for the length of a block.

    A non-blocking copy from pinned memory to the device, or from the device to the host, fills its destination with
    poison and waits in its stream's queue. It is made when that stream runs a kernel or a blocking copy, when a stream
    that waits for it does, or when the host waits for the stream, an event or the device; the source is read then.
    """
    native.call("set_asynchronous", 1)
    try:
        yield
    finally:
        native.call("set_asynchronous", 0)
