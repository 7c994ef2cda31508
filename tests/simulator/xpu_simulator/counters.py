"""What was done on the simulated device."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import native

REPORT_VARIABLE = "XPU_SIMULATOR_REPORT"
COMPILE_SECONDS = 0.03  # a guess at what a convolution's kernel takes to compile, tens of milliseconds

_TORCH = f"{os.sep}torch{os.sep}"
_HERE = str(Path(__file__).parent)
_BACKWARD = "backward"  # autograd's own threads have no line


@dataclass
class Counts:
    """The counters of a stretch of work; complete once its `count()` block has ended.

    Attributes:
        launches: Kernels. Views and copies between host and device are none; a copy within the device is one.
        launches_by_op: The same by operator.
        views: Operators that only made a view.
        float64_kernels: By operator, the kernels that computed in float64.
        syncs: By (kind, line): the points where the host waited for the device. The kind is `item`, the name of an
            operator whose result's shape depends on data, `device synchronize`, `stream synchronize`,
            `event synchronize` or `d2h blocking`. What autograd waited for in a thread of its own has the line
            "backward". Empty outside of `count()`: lines cost time.
        item_syncs: How many of them were `.item()` and its like.
        implicit_syncs: How many were operators whose result's shape depends on data.
        d2h: Copies from the device to the host.
        d2h_by_kind: The same by "blocking" and "non_blocking".
        d2d: Copies within a device or between two.
        h2d: Copies to the device by ("pinned" or "pageable", "blocking" or "non_blocking").
        h2d_lines: By (("pinned", "blocking"), line) and so on. Empty outside of `count()`.
        bytes_h2d: Bytes copied to the device.
        bytes_d2h: Bytes copied to the host.
        metadata_copies: Copies from pinned memory that go before kernels over lists of tensors, `_foreach_` and fused:
            two for each (torch-xpu-ops' MultiTensorApply.h). `h2d` hasn't got them.
        barriers: Events that torch's host allocator records: for each of these copies, and for each non-blocking copy
            to the device (torch-xpu-ops' Copy.cpp).
        primitive_misses: Convolutions' and products' kernels that oneDNN had to compile, for the first time or again.
        primitive_hits: How many it found compiled.
        channels_last_primitives: Convolutions, forward or backward, that were given a tensor in channels_last.
        collectives: Operations on tensors of all ranks' devices, barriers among them.
        bytes_collective: Bytes of the tensors that they write.
        kernel_seconds: How long the host computed and copied in the device's place, which a real device does meanwhile.
    """

    launches: int = 0
    launches_by_op: dict[str, int] = field(default_factory=dict)
    views: int = 0
    float64_kernels: dict[str, int] = field(default_factory=dict)
    syncs: Counter[tuple[str, str]] = field(default_factory=Counter)
    item_syncs: int = 0
    implicit_syncs: int = 0
    device_syncs: int = 0
    stream_syncs: int = 0
    event_syncs: int = 0
    d2h: int = 0
    d2h_by_kind: dict[str, int] = field(default_factory=dict)
    d2d: int = 0
    h2d: dict[tuple[str, str], int] = field(default_factory=dict)
    h2d_lines: Counter[tuple[tuple[str, str], str]] = field(default_factory=Counter)
    bytes_h2d: int = 0
    bytes_d2h: int = 0
    allocations: int = 0
    metadata_copies: int = 0
    barriers: int = 0
    primitive_misses: int = 0
    primitive_hits: int = 0
    channels_last_primitives: int = 0
    collectives: int = 0
    bytes_collective: int = 0
    kernel_seconds: float = 0.0

    @property
    def compile_seconds(self) -> float:
        """How long oneDNN would have compiled, roughly."""
        return self.primitive_misses * COMPILE_SECONDS


Reading = dict[str, dict[str, int]]

_baseline: Reading = {"counters": {}, "launches": {}, "float64": {}}


def read() -> Counts:
    """Return what was counted since the process began, or since the last `reset()`."""
    return _counts(_difference(_reading(), _baseline))


def reset() -> None:
    """Let `read()` begin anew."""
    global _baseline
    _baseline = _reading()


@contextmanager
def count(match: str | None = None) -> Iterator[Counts]:
    """Count what is done inside of a block.

    Args:
        match: Whose lines to name in `syncs` and `h2d_lines`: the innermost frame whose file's path contains this
            text. By default, the innermost frame that isn't torch's.

    Yields:
        Counts, empty until the block ends.
    """
    counts = Counts()
    before = _reading()
    seen: Counter[tuple[str, str]] = Counter()

    def note(kind: bytes) -> None:
        caller = sys._getframe().f_back
        seen[kind.decode(), _BACKWARD if caller is None else _line(caller, match)] += 1

    listener = native.LISTENER(note)
    outer = _listen(listener)
    try:
        yield counts
    finally:
        _listen(outer)
        done = _counts(_difference(_reading(), before))
        for (kind, line), n in seen.items():
            copy, _, how = kind.partition(" ")
            if copy == "h2d":
                memory, _, blocking = how.partition(" ")
                done.h2d_lines[(memory, blocking), line] += n
            elif kind != "d2h non_blocking":
                done.syncs[kind, line] += n
        vars(counts).update(vars(done))


def write_report() -> None:
    """Write the final counters to the file that `XPU_SIMULATOR_REPORT` names, the process's number before its suffix.

    Of `report.json`, process 123 makes `report.123.json`: a run may have several processes.
    """
    target = os.environ.get(REPORT_VARIABLE)
    if not target:
        return
    path = Path(target)
    counts = read()
    report: dict[str, Any] = dict(vars(counts))
    report["h2d"] = {" ".join(key): n for key, n in counts.h2d.items()}
    del report["syncs"], report["h2d_lines"]
    path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}").write_text(json.dumps(report, indent=1))


_listener: Any = None


def _listen(listener: Any) -> Any:
    """Set the listener and return the one before it. Counting blocks may nest; the inner one then hears."""
    global _listener
    before, _listener = _listener, listener
    pointer = None if listener is None else ctypes.cast(listener, ctypes.c_void_p)
    native.call("set_listener", pointer)
    return before


def _line(frame: Any, match: str | None) -> str:
    while frame is not None:
        path = frame.f_code.co_filename
        if match in path if match else _TORCH not in path and not path.startswith((_HERE, "<frozen")):
            name = path.rpartition(f"site-packages{os.sep}")[2]
            return f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


def _reading() -> Reading:
    return native.read_json("counters")


def _difference(after: Reading, before: Reading) -> Reading:
    return {
        group: {name: n - before[group].get(name, 0) for name, n in values.items() if n != before[group].get(name, 0)}
        for group, values in after.items()
    }


def _counts(reading: Reading) -> Counts:
    n = Counter(reading["counters"])
    kinds = ("blocking", "non_blocking")
    return Counts(
        launches=n["launches"],
        launches_by_op=reading["launches"],
        views=n["views"],
        float64_kernels=reading["float64"],
        item_syncs=n["item_syncs"],
        implicit_syncs=n["implicit_syncs"],
        device_syncs=n["device_syncs"],
        stream_syncs=n["stream_syncs"],
        event_syncs=n["event_syncs"],
        d2h=sum(n[f"d2h_{kind}"] for kind in kinds),
        d2h_by_kind={kind: n[f"d2h_{kind}"] for kind in kinds},
        d2d=n["d2d"] + n["peer_to_peer"],
        h2d={(memory, kind): n[f"h2d_{memory}_{kind}"] for memory in ("pinned", "pageable") for kind in kinds},
        bytes_h2d=n["bytes_h2d"],
        bytes_d2h=n["bytes_d2h"],
        allocations=n["allocations"],
        metadata_copies=n["metadata_copies"],
        barriers=n["barriers"],
        primitive_misses=n["primitive_misses"],
        primitive_hits=n["primitive_hits"],
        channels_last_primitives=n["channels_last_primitives"],
        collectives=n["collectives"],
        bytes_collective=n["bytes_collective"],
        kernel_seconds=n["kernel_nanoseconds"] / 1e9,
    )
