"""Child processes with a time limit: what they print arrives line by line, and a driver can't keep the parent."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

__all__ = ["ChildError", "Children", "CrashedError", "HungError", "lines"]


class ChildError(Exception):
    """A child process didn't come to its end.

    Attributes:
        said: The end of what it printed to standard error.
    """

    def __init__(self, message: str, *, said: str) -> None:
        super().__init__(message)
        self.said = said


class HungError(ChildError):
    """It printed nothing for too long, and was killed."""


class CrashedError(ChildError):
    """It ended with an error.

    Attributes:
        status: Its exit status; negative is the number of the signal that ended it.
    """

    def __init__(self, message: str, *, said: str, status: int) -> None:
        super().__init__(message, said=said)
        self.status = status


Children = Callable[[Sequence[str], Mapping[str, str], float], Iterator[str]]
"""Runs a command with an environment and yields its lines, as `lines` does."""


def lines(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> Iterator[str]:
    """Run a command and yield what it prints to standard output.

    Args:
        command: The program and its arguments.
        environ: Its environment.
        seconds: How long it may be silent.

    Yields:
        A line, without its end.

    Raises:
        HungError: It was silent for longer.
        CrashedError: It ended with an error, or can't be started.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                list(command),
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise CrashedError(f"{command[0]} can't be started: {error}", said=str(error), status=127) from error
        said: queue.Queue[str | None] = queue.Queue()
        assert process.stdout is not None
        threading.Thread(target=_read, args=(process.stdout, said), daemon=True).start()
        try:
            while (line := said.get(timeout=seconds)) is not None:
                yield line
            status = process.wait(seconds)
        except (queue.Empty, subprocess.TimeoutExpired):
            _end(process)
            raise HungError(f"no answer within {seconds:g} seconds", said=_tail(errors)) from None
        finally:
            _end(process)
        if status:
            raise CrashedError(f"ended {_how(status)}", said=_tail(errors), status=status)


def _read(stream: IO[bytes], said: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            said.put(line.decode(errors="replace").rstrip("\r\n"))
    said.put(None)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it started; one that is stuck within a driver can't be waited for."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            if os.name != "nt":
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)


def _how(status: int) -> str:
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:  # Windows' own are large, and documented in hexadecimal
        return f"with exit status {status:#x}" if status > 0xFFFF else f"with exit status {status}"


def _tail(stream: IO[bytes], size: int = 4000) -> str:
    stream.seek(0, os.SEEK_END)
    stream.seek(max(stream.tell() - size, 0))
    return stream.read().decode(errors="replace").strip()
