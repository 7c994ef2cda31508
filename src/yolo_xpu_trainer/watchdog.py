"""Ends this process where another rank of its run has failed or is gone, or all of them wait for one that hangs.

A collective operation can't be interrupted, and waits for a rank that is gone as for a slow one. So a thread of every
rank tells the others once a second that it is alive and how far it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["Watchdog"]

_LOGGER = logging.getLogger("ultralytics")
_PERIOD = 1.0  # seconds between two signs of life
_SILENCE = 30.0  # seconds without one after which a rank is gone: killed, its machine off, its network cut
_UNTIL_SAVED = 20.0
_UNTIL_TOLD = 2.0  # seconds that this process waits for a store that may be gone, and whose requests then block
_LATE = 5.0  # seconds after which this process was suspended (Ctrl-Z, scontrol suspend), as the others may have been
_DONE = "done"
_STATUS = 75  # EX_TEMPFAIL of sysexits.h: another process may go on


class Watchdog:
    """What the ranks of a run tell each other beside their collective operations.

    Args:
        store: A client of the run's key-value store, used by nobody else: a request may block.
        rank: This process's rank.
        peers: What each rank is, such as "rank 1 (node7, xpu:1)".
        prefix: What this run's keys begin with.
        patience: Seconds without progress of any rank after which all are ended.
        ended: Told why, just before this process is ended.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        peers: Sequence[str],
        prefix: str,
        patience: float,
        ended: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._store, self._rank, self._peers, self._prefix = store, rank, tuple(peers), prefix
        self._patience, self._ended = patience, ended
        self._steps = self._beats = 0
        self._stopped = threading.Event()
        self._failure = ""
        now = time.monotonic()
        self._heard = now  # when the store last answered
        self._signs: list[tuple[float, str]] = [(now, "")] * len(peers)  # when each rank's sign last changed
        self._advanced = now
        self._saving = threading.RLock()
        self._exchange()  # so that every rank's key is there before any rank reads it, once all have come by a barrier

    def start(self) -> None:
        """Begin to look. Every rank has made its watchdog by now."""
        self._look_anew(time.monotonic())
        for function in (self._talk, self._judge):
            threading.Thread(target=function, name=f"xpu-{function.__name__.strip('_')}", daemon=True).start()

    def _look_anew(self, now: float) -> None:
        """Forget how long nothing was heard of the others."""
        self._heard = self._advanced = now
        self._signs = [(now, value) for _, value in self._signs]

    def step(self) -> None:
        """Note that this rank is on its way."""
        self._steps += 1

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Let this process not be ended while a file is written."""
        with self._saving:
            yield

    def fail(self, text: str) -> None:
        """Tell the others of an error that ends this rank, unless another one was first."""
        if not self._stopped.is_set() and not self._failure:
            _attempt(lambda: self._tell(f"{self._peers[self._rank]} failed: {text}"))

    def failure(self, wait: float = 0.0) -> str:
        """Return what ended another rank, "" where nothing did.

        Args:
            wait: Seconds to wait for it.
        """
        until = time.monotonic() + wait
        while not self._failure and time.monotonic() < until and not self._stopped.is_set():
            time.sleep(0.1)
        return self._failure

    def stop(self) -> None:
        """Look no more: this rank has come to its end."""
        if not self._stopped.is_set():
            self._stopped.set()
            _attempt(lambda: self._store.set(self._key(self._rank), _DONE))

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    def _tell(self, text: str) -> None:
        self._store.compare_set(f"{self._prefix}/failure", "", text)

    def _exchange(self) -> None:
        self._beats += 1
        self._store.set(self._key(self._rank), f"{self._beats} {self._steps}")

    def _talk(self) -> None:
        keys = [self._key(rank) for rank in range(len(self._peers))]
        while not self._stopped.wait(_PERIOD):
            try:
                self._exchange()
                values = [bytes(value).decode() for value in self._store.multi_get(keys)]
                if self._store.check([f"{self._prefix}/failure"]):
                    self._failure = bytes(self._store.get(f"{self._prefix}/failure")).decode()
            except Exception:  # the store is gone, and who knows of which type its errors are
                continue
            now = self._heard = time.monotonic()
            for rank, value in enumerate(values):
                before = self._signs[rank][1]
                if value != before:
                    self._signs[rank] = (now, value)
                    if _steps(value) != _steps(before):
                        self._advanced = now

    def _judge(self) -> None:
        since = None
        before = time.monotonic()
        while not self._stopped.wait(0.25):
            now = time.monotonic()
            if now - before > _LATE:
                self._look_anew(now)
            before = now
            if self._failure:
                # The main thread may be on its way out with an error that says more.
                since = since or now
                if now - since > 5:
                    self._end(self._failure, wait=0)
                    return
            elif now - self._heard > _SILENCE and any(value == _DONE for _, value in self._signs):
                return  # rank 0 has come to its end, and the store with it
            elif text := self._verdict(now):
                self._end(text)
                return

    def _verdict(self, now: float) -> str:
        """Return why nothing will come of the run any more, "" while something may."""
        if now - self._heard > _SILENCE:
            return f"no rank can be reached any more: {self._peers[0]}, or the network to it, is gone"
        going = [(peer, *sign) for peer, sign in zip(self._peers, self._signs, strict=True) if sign[1] != _DONE]
        gone = [peer for peer, when, _ in going if now - when > _SILENCE]
        if gone:
            return f"{', '.join(gone)} gave no sign of life for {_SILENCE:.0f} s: killed, or cut off"
        steps = [_steps(value) for _, _, value in going]
        if now - self._advanced > self._patience and all(steps):
            behind = [peer for (peer, _, _), count in zip(going, steps, strict=True) if count == min(steps)]
            return f"no rank got on for {self._patience:.0f} s (xpu_rank_timeout); behind: {', '.join(behind)}"
        return ""

    def _end(self, text: str, wait: float = 2.0) -> None:
        """End this process, whose main thread waits where nothing interrupts it."""
        if self._stopped.is_set():
            return
        self._failure = self._failure or text
        started = time.monotonic()
        _attempt(lambda: self._tell(text))
        time.sleep(max(0.0, wait - (time.monotonic() - started)))
        end_process(f"{self._peers[self._rank]} is ended, because {text}.", lambda: self._ended(text), self._saving)


def _attempt(request: Callable[[], Any]) -> None:
    """Ask the store for something, and wait for it no longer than it takes where the store is there."""

    def ask() -> None:
        with contextlib.suppress(Exception):
            request()

    asking = threading.Thread(target=ask, name="xpu-ask", daemon=True)
    asking.start()
    asking.join(_UNTIL_TOLD)


def _steps(value: str) -> int:
    """Return how far a rank is by its sign."""
    _, _, steps = value.partition(" ")
    return int(steps) if steps.isdigit() else 0


def end_process(text: str, ended: Callable[[], None], saving: Any = None) -> None:
    """End this process and those that load its data, at once but for a file that is being written."""
    print(f"XPU: {text}", file=sys.stderr, flush=True)
    with contextlib.suppress(Exception):
        ended()
    if saving is not None:
        saving.acquire(timeout=_UNTIL_SAVED)
    with contextlib.suppress(Exception):
        import psutil

        for process in psutil.Process().children(recursive=True):
            process.kill()
    sys.stdout.flush()
    os._exit(_STATUS)
