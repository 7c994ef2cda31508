"""The process group of a run that a launcher started: opened before its trainer is made, closed as the run ends."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from . import devices, staging
from .errors import CollectivesError, DuplicateDeviceError, NoXCCLError, RankError, WorkerError, XPUTrainerError
from .files import replacing
from .ranks import Launch
from .watchdog import Watchdog, end_process

__all__ = ["Group", "Peer", "backend_for", "first_all_reduce", "join_as_worker", "of_worker", "watch"]

_NAME = "yolo-xpu/group"
_FIRST = 180.0  # seconds that a first all-reduce may take, in which kernels are built and connections made
_MASKS = ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR")
_UNTIL_CLOSED = 10.0
_TOGETHER = 600.0  # seconds until all processes, which a launcher starts at about the same time, must be there
_LONGER = 30.0  # seconds that an operation waits longer than the watchdog, which knows who is behind
_CUT = ("connection closed by peer", "connection reset", "broken pipe", "socket timeout", "timed out", "timeout")


@dataclass(frozen=True)
class Peer:
    """One of a run's processes.

    Attributes:
        rank: Its rank.
        local_rank: Its rank on its machine.
        node: What tells its machine apart: the launcher's number for it, else its name.
        host: Its machine's name.
        device: Its XPU, such as "xpu:0 Intel Arc B580 Graphics".
        name: The driver's name for it.
        seen: What tells its XPU apart from others of the machine.
    """

    rank: int
    local_rank: int
    node: str
    host: str
    device: str
    name: str = ""
    seen: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, {self.device})"


class _TerminatedError(SystemExit):
    """SIGTERM, with which launchers end the other processes where one has failed."""


class Group:
    """The processes of a run, by what they tell each other.

    Attributes:
        launch: Which of them this one is.
        device: The XPU of this one.
        peers: All of them, by rank.
        watchdog: What ends this one where another one doesn't get on.
    """

    def __init__(self, launch: Launch, device: devices.DeviceInfo, timeout: float, backend: str = "xccl") -> None:
        """Come together with the other processes.

        Args:
            launch: Which process this is.
            device: Its XPU.
            timeout: How long, in seconds, to wait for the others, now and in each collective operation.
            backend: What `torch.distributed` calls that by which they compute together.

        Raises:
            CollectivesError: They don't come together.
            DuplicateDeviceError: Two of them train on one XPU.
        """
        self.launch, self.device = launch, device
        torch.xpu.set_device(device.index)
        self._own = not torch.distributed.is_initialized()
        self.watchdog: Watchdog | None = None
        self._handler = _raise_at_sigterm()
        try:
            if self._own:
                _come_together(launch, timeout, backend)
            first_all_reduce(device.device, timeout)
            masks = " ".join(f"{name}={os.environ[name]}" for name in _MASKS if os.environ.get(name))
            host = socket.gethostname()
            me = Peer(
                rank=launch.rank,
                local_rank=launch.local_rank,
                node=launch.node or host,
                host=host,
                device=str(device),
                name=device.name,
                seen=f"{masks} {device.index}",
            )
            self.peers: list[Peer] = self.gather(me)
            self.watchdog = watch(self.peers, self.agree(secrets.token_hex(8)), launch.rank, timeout)
            self._check_devices()
        except BaseException as error:
            self.close(error)
            raise

    def _check_devices(self) -> None:
        taken: dict[tuple[str, str], Peer] = {}
        for peer in self.peers:
            other = taken.setdefault((peer.node, peer.seen), peer)
            if other is not peer:
                raise DuplicateDeviceError(
                    f"{other} and {peer} would train on one XPU. Start as many processes on a machine as it has XPUs, "
                    "or give each process one of its own by ZE_AFFINITY_MASK.",
                    requested=peer.device,
                    seen=devices.describe(),
                )

    @property
    def machines(self) -> int:
        """How many machines there are."""
        return len({peer.node for peer in self.peers})

    def gather(self, value: Any) -> list[Any]:
        """Return what each rank gives, on all of them."""
        values: list[Any] = [None] * self.launch.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def agree(self, value: Any, source: int = 0) -> Any:
        """Return what one rank gives, on all of them."""
        values = [value if self.launch.rank == source else None]
        torch.distributed.broadcast_object_list(values, src=source)
        return values[0]

    def share(self, path: Path, source: int = 0) -> bool:
        """Give a file that one rank has to every machine that doesn't have it: machines need not share a disk.

        Args:
            path: Where the file is, on each rank.
            source: The rank that has it.

        Returns:
            Whether it has it.
        """
        launch = self.launch
        states = self.gather(_checksum(path) if launch.rank == source or launch.local_rank == 0 else None)
        wanted = states[source]
        if wanted is None:
            return False
        if any(peer.local_rank == 0 and state != wanted for peer, state in zip(self.peers, states, strict=True)):
            data = self.agree(path.read_bytes() if launch.rank == source else None, source)
            if launch.local_rank == 0 and states[launch.rank] != wanted:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as beside:
                    beside.write_bytes(data)
            torch.distributed.barrier()
        return True

    def failed_first(self, error: BaseException) -> RankError | None:
        """Return what ended another rank, where an error of this one only says that that one is gone."""
        if self.watchdog is None or isinstance(error, RankError):
            return None
        text = self.watchdog.failure(wait=3 if isinstance(error, _TerminatedError) else 0)
        if not text and _is_cut(error):
            text = self.watchdog.failure(wait=5)
            text = text or f"another rank is gone: killed, its machine off or its network cut ({_first_line(error)})"
        return RankError(f"{self.peers[self.launch.rank]} is ended, because {text}.", seen=text) if text else None

    def close(self, error: BaseException | None = None) -> None:
        """Leave the others.

        Args:
            error: What ends this process's part before the run's end, which the others are told.
        """
        if self.watchdog is not None:
            if isinstance(error, _TerminatedError):
                self.watchdog.fail("ended by SIGTERM")
            elif error is not None and not isinstance(error, RankError):
                self.watchdog.fail(f"{type(error).__name__}: {error}")
                _note_for_torchrun(error)
            self.watchdog.stop()
        if self._handler is not None:
            with contextlib.suppress(ValueError):  # in another thread than the main one
                signal.signal(signal.SIGTERM, self._handler)
            self._handler = None
        if self._own and torch.distributed.is_initialized():
            # Where others wait in an operation it may never return.
            closing = threading.Thread(target=_destroy, name="xpu-close", daemon=True)
            closing.start()
            closing.join(_UNTIL_CLOSED)


def backend_for(indices: Sequence[int], world_size: int = 1, *, gloo: bool) -> str:
    """Return what `torch.distributed` calls that by which XPUs compute together here.

    Args:
        indices: The XPUs of a run.
        world_size: How many processes it has by now.
        gloo: Whether by way of the host.

    Raises:
        NoXCCLError: This PyTorch hasn't got it.
    """
    if gloo:
        if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
            raise NoXCCLError(
                f"xpu_gloo=True sends gradients by way of the host, but this PyTorch ({torch.__version__}) was built "
                f"without gloo, which adds them up there. Use one device, device='xpu:{indices[0]}'.",
                requested=list(indices),
                seen=devices.describe(),
            )
        return staging.register()
    devices.check_collectives(indices, world_size)
    return "xccl"


def join_as_worker(index: int, world_size: int, backend: str) -> None:
    """Join the others, in a process that Ultralytics started, as `BaseTrainer._setup_ddp` does for CUDA devices.

    Args:
        index: This process's XPU.
        world_size: How many processes there are.
        backend: What `backend_for` returned.
    """
    torch.xpu.set_device(index)
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group(backend, timeout=timedelta(hours=3), rank=rank, world_size=world_size)


def of_worker(error: Exception) -> XPUTrainerError:
    """Return an error that ends a process which Ultralytics started as one that its parent can raise."""
    if isinstance(error, XPUTrainerError):
        return error
    seen = type(error).__name__
    if _is_cut(error):
        return RankError(f"Another rank is gone: killed, or ended by an error ({_first_line(error)})", seen=seen)
    return WorkerError(f"{seen}: {error}", seen=seen)


def _is_cut(error: BaseException) -> bool:
    """Whether an error says no more than that another rank can't be reached."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _CUT)


def _come_together(launch: Launch, timeout: float, backend: str) -> None:
    """Open the process group, or say in one paragraph why that can't be.

    Raises:
        CollectivesError: The processes don't find each other.
    """
    together = timedelta(seconds=min(timeout + _LONGER, _TOGETHER))
    try:
        _init(launch, together, timedelta(seconds=timeout + _LONGER), backend)
    except (RuntimeError, ValueError) as error:  # a ValueError where the address isn't set, or isn't one
        raise CollectivesError(
            f"Rank {launch.rank} of {launch.world_size} can't come together with the others by "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: {_first_line(error)} See that "
            "every process was started, and that their machines reach that address.",
            rank=launch.rank,
        ) from error


def _init(launch: Launch, together: timedelta, timeout: timedelta, backend: str) -> None:
    """Open the process group, by keys that no earlier one has used.

    A torchrun that starts its processes again keeps their store, in which a rank would find where another one could be
    reached before. So rank 0 gives this group a name, and the others wait until it has read what they say under it.
    """
    store, rank, world_size = next(
        torch.distributed.rendezvous("env://", launch.rank, launch.world_size, timeout=together)  # type: ignore[attr-defined]
    )
    me = name = secrets.token_hex(8)
    if rank == 0:
        store.set(_NAME, name)
    said_under = ""
    until = time.monotonic() + together.total_seconds()
    while True:
        if rank == 0:
            keys = [f"{name}/here/{other}" for other in range(1, world_size)]
            if store.check(keys):
                store.set(f"{name}/go", b" ".join(store.get(key) for key in keys))
                break
        elif store.check([_NAME]):
            name = store.get(_NAME).decode()
            if name != said_under:
                store.set(f"{name}/here/{rank}", me)
                said_under = name
            if store.check([f"{name}/go"]) and me in store.get(f"{name}/go").decode().split():
                break
        if time.monotonic() > until:
            raise RuntimeError(f"not every rank was there within {together.total_seconds():g} s.")
        time.sleep(0.05)
    store.set_timeout(timeout)
    store = torch.distributed.PrefixStore(name, store)  # type: ignore[attr-defined]
    torch.distributed.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)


def _destroy() -> None:
    with contextlib.suppress(Exception):
        torch.distributed.destroy_process_group()


def _raise_at_sigterm() -> Any:
    """Turn SIGTERM, which would end this process in the middle of what it writes, into an exception.

    Returns:
        What was there before, None where it stays as it is.
    """

    def end(number: int, frame: Any) -> None:
        raise _TerminatedError(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return None
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:
        return None
    signal.signal(signal.SIGTERM, end)
    return before


def _note_for_torchrun(error: BaseException) -> None:
    """Leave an error where torchrun looks for what to say of a process that failed."""
    if os.environ.get("TORCHELASTIC_ERROR_FILE"):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        with contextlib.suppress(Exception):
            get_error_handler().record_exception(error)


def watch(
    peers: list[Peer], token: str, rank: int, timeout: float, ended: Callable[[str], None] = lambda text: None
) -> Watchdog | None:
    """Start to watch the other ranks, unless the run has no store that a second client can ask.

    Args:
        peers: All ranks.
        token: What tells the run apart from others, which went by the same store.
        rank: That of this process.
        timeout: Seconds without progress of any rank after which all are ended.
        ended: Told why, just before this process is ended.
    """
    try:
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=30),
        )
        watchdog = Watchdog(store, rank, [str(peer) for peer in peers], f"yolo-xpu/{token}", timeout, ended)
    except (KeyError, ValueError, RuntimeError):  # a group that the user opened otherwise
        watchdog = None
    found: list[Any] = [None] * len(peers)
    torch.distributed.all_gather_object(found, watchdog is not None)
    if watchdog is None or not all(found):
        return None
    watchdog.start()
    return watchdog


def first_all_reduce(
    device: torch.device, seconds: float, ended: Callable[[CollectivesError], None] = lambda error: None
) -> None:
    """Let the ranks add up a tensor, and end this process where that takes for ever, as it does on some XPUs.

    Args:
        device: This rank's XPU.
        seconds: How long to wait; three minutes at most.
        ended: Told of the error with which this process is ended.
    """
    with _limited(min(seconds, _FIRST), ended):
        tensor = torch.ones(1 << 18, device=device)
        torch.distributed.all_reduce(tensor)
        correct = bool((tensor == torch.distributed.get_world_size()).all())
    if not correct:
        raise CollectivesError(
            f"The first all-reduce gave {tensor[0].item():g} where {torch.distributed.get_world_size()} ranks added "
            "1 each, so no training on several XPUs can be right here. CCL_ALLREDUCE=ring in the environment lets "
            "oneCCL add in another way.",
            rank=torch.distributed.get_rank(),
        )


@contextmanager
def _limited(seconds: float, ended: Callable[[CollectivesError], None]) -> Iterator[None]:
    done = threading.Event()
    rank = torch.distributed.get_rank()

    def wait() -> None:
        if done.wait(seconds):
            return
        error = CollectivesError(
            f"The first all-reduce of {torch.distributed.get_world_size()} ranks didn't end within {seconds:g} s. "
            "oneCCL 2022.0 and 2022.1 are known to hang in it on several Arc Pro B60 (oneCCL#215), where "
            "CCL_ALLREDUCE=ring in the environment was seen to help; else see that every rank has an XPU of its own, "
            "and that the machines reach each other.",
            rank=rank,
        )
        end_process(f"{error}", lambda: ended(error))

    threading.Thread(target=wait, name="xpu-first-all-reduce", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _checksum(path: Path) -> tuple[int, int] | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return len(data), zlib.crc32(data)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
