"""`yolo-xpu train`: `yolo train` in a child process, which is started again where a device or a driver ends it.

What a process can't survive, the next one can: a lost device, a driver that hangs or crashes, a kernel that the system
kills because memory ran out. The run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..files import HEARTBEAT_VARIABLE
from .arguments import DEFAULT, integer

__all__ = ["add_arguments", "run"]

LOST, OUT_OF_MEMORY = 75, 71
"""Exit statuses of `yolo` after a lost device and where memory ran out: `exit_status` in `device_errors.py`."""

_LOOK = 0.2  # seconds between two looks at the child
_LEAST_PATIENCE, _TIMES_LONGER = 120.0, 20  # a step may take so many times as long as the longest before
_LONGEST_PAUSE = 300.0
_ENTRYPOINT = "from ultralytics.cfg import entrypoint; entrypoint()"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("--restarts", type=integer(0), default=3, metavar="N", help=f"how often a run is started again{DEFAULT}")
    add(
        "--pause",
        type=integer(0),
        default=10,
        metavar="S",
        help=f"seconds before the first; then twice as long{DEFAULT}",
    )
    add(
        "--start",
        type=integer(1),
        default=1800,
        metavar="S",
        help=f"seconds until the first batch, in which kernels are compiled, before the run counts as hanging{DEFAULT}",
    )
    add("arguments", nargs="*", metavar="ARGUMENT", help="arguments of `yolo train`, such as model=yolo11n.pt")


@dataclass(frozen=True)
class _End:
    """How a child process ended."""

    status: int
    hung: float = 0.0  # seconds without a step, where that is why it was ended

    @property
    def is_worth_another(self) -> bool:
        """Whether the next process may do better: not after an error of the data, the arguments or the code."""
        return bool(self.hung) or self.status == LOST or self.status < 0 or self.status in (134, 137, 139)

    def __str__(self) -> str:
        if self.hung:
            return f"it made no step for {self.hung:.0f} s"
        if self.status in (LOST, OUT_OF_MEMORY):
            return "the device was lost" if self.status == LOST else "memory ran out"
        number = -self.status if self.status < 0 else self.status - 128
        try:
            return f"it was ended by {signal.Signals(number).name}"
        except ValueError:
            return f"it ended with exit status {self.status}"


def run(args: argparse.Namespace) -> int:
    """Train, and go on after what a new process can get over.

    Returns:
        The exit status of the last process.
    """
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="yolo-xpu-") as directory:
        beat = Path(directory) / "heartbeat.json"
        arguments: Sequence[str] = args.arguments
        for restart in range(args.restarts + 1):
            end = _train(arguments, beat, args.start)
            if end.status == 0 and not end.hung:
                return 0
            checkpoint = Path(_read(beat).get("checkpoint", ""))
            batch = int(_read(beat).get("batch", 0))
            left = args.restarts - restart
            worth = end.is_worth_another or (end.status == OUT_OF_MEMORY and batch > 1 and checkpoint.is_file())
            if not worth or not left:
                _tell(console, f"{end}", "" if worth else "which another process wouldn't change")
                break
            pause = min(args.pause * 2**restart, _LONGEST_PAUSE)
            if checkpoint.is_file():
                arguments = ["resume=True", f"model={checkpoint}"]
                then = f"going on with {checkpoint}"
                if end.status == OUT_OF_MEMORY:
                    arguments = [*arguments, f"batch={batch // 2}"]
                    then += f" and batch={batch // 2}"
            else:
                then = "starting anew, because nothing was saved yet"
            _tell(console, f"{end}", f"{then} in {pause:g} s, {left} of {args.restarts} restarts left")
            time.sleep(pause)
    return end.status if end.status > 0 else 128 - end.status


def _tell(console: Console, seen: str, then: str) -> None:
    console.print(f"yolo-xpu train: {seen}" + f"; {then}" * bool(then) + ".", highlight=False, soft_wrap=True)


def _train(arguments: Sequence[str], beat: Path, start: float) -> _End:
    """Run `yolo train` in a child process until it ends, or hangs, and is ended."""
    environment = {**os.environ, HEARTBEAT_VARIABLE: str(beat)}
    command = [sys.executable, "-c", _ENTRYPOINT, "train", *arguments]
    stamp = _stamp(beat)
    process = subprocess.Popen(command, env=environment, start_new_session=os.name != "nt")
    patience, since = start, time.monotonic()
    beats = 0
    try:
        while (status := process.poll()) is None:
            time.sleep(_LOOK)
            passed = time.monotonic() - since
            if (now := _stamp(beat)) != stamp:
                stamp, beats = now, beats + 1
                if beats > 1:  # the first one ends the preparation
                    patience = max(_LEAST_PATIENCE, passed * _TIMES_LONGER, patience if beats > 2 else 0.0)
                since = time.monotonic()
            elif passed > patience:
                _end(process)
                return _End(process.wait(), hung=passed)
    except BaseException:  # Ctrl-C, above all
        _end(process, gently=True)
        raise
    return _End(status)


def _end(process: subprocess.Popen[Any], gently: bool = False) -> None:
    """End a child process and its own, of data loading and of other devices."""
    if gently:
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    if os.name != "nt":
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _stamp(beat: Path) -> int:
    try:
        return beat.stat().st_mtime_ns
    except OSError:
        return 0


def _read(beat: Path) -> dict[str, Any]:
    try:
        said = json.loads(beat.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
