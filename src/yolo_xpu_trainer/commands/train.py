"""`yolo-xpu train`: `yolo train` in a child process, which is started again where a device or a driver ends it.

What a process can't survive, the next one can: a lost device, a driver that hangs or crashes, being killed by the
system because memory ran out. The run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from ..errors import NoXPUError
from ..files import HEARTBEAT_VARIABLE
from .arguments import DEFAULT, integer

__all__ = ["add_arguments", "announce", "run"]

LOST, OUT_OF_MEMORY = 75, 71
"""Exit statuses of `yolo` after a lost device and where memory ran out: `exit_status` in `device_errors.py`."""

NO_DEVICE = NoXPUError.exit_status
"""Exit status of `yolo` where there is no XPU. One that was lost may take a while to come back."""

_LOOK = 0.2  # seconds between two looks at the child
# A step may take so many times as long as the longest before, and what is between steps (COCO's evaluation, plots, what
# callbacks send somewhere) ten minutes: to end a run that is sound costs more than to wait for one that isn't.
_LEAST_PATIENCE, _TIMES_LONGER = 600.0, 20
_LONGEST_PAUSE = 300.0
_UNTIL_DEAD = 60.0  # seconds; a process in a driver's call may outlive SIGKILL
_ENTRYPOINT = (
    "from yolo_xpu_trainer.commands.train import announce; announce(); "
    "from ultralytics.cfg import entrypoint; entrypoint()"
)


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
        if self.hung or self.status == LOST:
            return True
        crashed = self.status in (134, 137, 139) or self.status >= 0xC0000000  # as Windows tells of exceptions
        return crashed or (self.status < 0 and self.status != -signal.SIGINT)

    def __str__(self) -> str:
        if self.hung:
            return f"it made no step for {self.hung:.0f} s"
        if self.status in (LOST, OUT_OF_MEMORY):
            return "the device or another process was lost" if self.status == LOST else "memory ran out"
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
    with tempfile.TemporaryDirectory(prefix="yolo-xpu-") as directory, _ended_with_its_child():
        beat = Path(directory) / "heartbeat.json"
        arguments: Sequence[str] = args.arguments
        for restart in range(args.restarts + 1):
            end = _train(arguments, beat, args.start)
            if end.status == 0 and not end.hung:
                return 0
            said = _read(beat)
            checkpoint = Path(said.get("checkpoint", ""))
            batch = int(said.get("batch", 0))
            left = args.restarts - restart
            worth = (
                end.is_worth_another
                or (end.status == NO_DEVICE and bool(restart))
                or (end.status == OUT_OF_MEMORY and batch > 1 and checkpoint.is_file())
            )
            if worth and _is_finished(checkpoint):
                best = checkpoint.with_name("best.pt")
                _tell(console, f"{end}", f"every epoch is trained, only the evaluation of {best} is missing")
                break
            if not worth or not left:
                _tell(console, f"{end}", "" if worth else "a new process would end likewise")
                break
            pause = min(args.pause * 2**restart, _LONGEST_PAUSE)
            if checkpoint.is_file():
                # The device is named, because a run goes on without one that isn't there.
                arguments = ["resume=True", f"model={checkpoint}", f"device={said['device']}"]
                then = f"going on with {checkpoint}"
                if end.status == OUT_OF_MEMORY:
                    arguments = [*arguments, f"batch={batch // 2}"]
                    then += f" and batch={batch // 2}"
            else:
                then = "starting anew, because nothing was saved yet"
            _tell(console, f"{end}", f"{then} in {pause:g} s, {left} of {args.restarts} restarts left")
            time.sleep(pause)
    return end.status if end.status > 0 else 128 - end.status


def announce() -> None:
    """Let a run that isn't on an XPU, and whose steps nobody tells of, say so. Called in the child process."""
    from ultralytics.utils.callbacks.base import default_callbacks

    def say(trainer: Any) -> None:
        run = getattr(trainer, "xpu", None)
        told = run is not None and [i.plugin_name for i in run.hooks.implementations("xpu_after_setup")]
        if not told or "heartbeat" not in told:  # xpu_plugins=-heartbeat
            with contextlib.suppress(OSError):
                Path(os.environ[HEARTBEAT_VARIABLE]).write_text(json.dumps({"watched": False}), encoding="utf-8")

    default_callbacks["on_pretrain_routine_start"].append(say)


@contextlib.contextmanager
def _ended_with_its_child() -> Iterator[None]:
    """Turn signals that would end this process at once, and leave the child behind, into an exception."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = {}
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # ignored by nohup, for instance
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_finished(checkpoint: Path) -> bool:
    """Whether a checkpoint is that of a run whose epochs are all trained, of which nothing goes on."""
    import torch

    if not checkpoint.is_file():
        return False
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=False)
        return bool(saved["epoch"] == -1)
    except Exception:  # of whatever type its classes raise; going on tells
        return False


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
                if not _read(beat).get("watched", True):
                    patience = math.inf
                elif beats > 1:  # the first one ends the preparation
                    patience = max(_LEAST_PATIENCE, passed * _TIMES_LONGER, patience if beats > 2 else 0.0)
                since = time.monotonic()
            elif passed > patience:
                return _End(_end(process), hung=passed)
    except BaseException:  # Ctrl-C, above all
        _end(process, gently=True)
        raise
    if status:
        _end(process)  # what it has left behind
    return _End(status)


def _end(process: subprocess.Popen[Any], gently: bool = False) -> int:
    """End a child process and its own, of data loading and of other devices.

    Returns:
        Its exit status.
    """
    own = _descendants(process.pid)  # workers of other devices are in sessions of their own (torch.distributed.elastic)
    if gently:
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    if os.name != "nt":
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    for one in own:
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.kill()
    try:
        return process.wait(_UNTIL_DEAD)
    except subprocess.TimeoutExpired:
        return -9


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return found


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
