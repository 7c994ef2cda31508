"""Count what plain Ultralytics and ours do on the same simulated XPU, side by side, and fail where a goal is lost.

Everything but the host's time, which is what it takes without the kernels that it computes in the device's place, is
counted, exactly and repeatably; nothing here tells how fast a GPU is. Each training is at 64 pixels, with a batch of 4,
one loader process and an optimizer step a batch, in bf16 (plain Ultralytics: fp16) and in fp32; the second epoch
counts. The peaks of memory are those of another training, at each of its moments.
`--versions` compares what ours does on older versions of Ultralytics with what it does on the installed one, `--ranks`
what a step of two ranks does beside plain Ultralytics' own two, on two simulated XPUs.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .cases import CASES, PRECISIONS, Case

PROFILE = "arc-b580"
ROUNDS = 4  # of timed trainings, plain and ours in turn; of all their steps the fastest counts


def prepare(directory: Path) -> None:
    """Set what Ultralytics, PyTorch and the simulator read when they are imported."""
    os.environ.update(YOLO_CONFIG_DIR=str(directory), YOLO_OFFLINE="true", YOLO_VERBOSE="false", MPLBACKEND="Agg")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCH_DISABLE_NATIVE_JIT", "1")
    import xpu_simulator

    xpu_simulator.activate(PROFILE)
    import ultralytics  # noqa: F401 - activates this package's rows

    logging.getLogger("ultralytics").setLevel(logging.ERROR)


def run(case: Case, data: str, directory: Path, timed: bool) -> tuple[Any, Any]:
    """Train with plain Ultralytics and with ours, counted, and then timed in turn.

    Returns:
        What each did.
    """
    from ..training import plain_ultralytics
    from .counting import train
    from .memory import peaks

    shared = {
        "optimizer": case.optimizer,
        "amp": case.precision == "bf16",
        "project": str(directory),
        "name": "run",
    }
    ours_only = {"xpu_log_every": 3600.0}
    model = f"{case.model}.yaml"
    plain = train(case.plain, model, data, shared, around=plain_ultralytics)
    ours = train(case.ours, model, data, {**shared, **ours_only})
    if case.optimizer == "AdamW":
        plain.peaks = peaks(case.plain, model, data, shared, around=plain_ultralytics)
        ours.peaks = peaks(case.ours, model, data, shared)
    plain.seconds.clear()
    ours.seconds.clear()
    tiny = {**shared, "epochs": 4, "imgsz": 32, "val": False, "save": False}
    for _ in range(ROUNDS if timed else 0):
        for total, timed_once in (
            (plain, train(case.plain, model, data, tiny, around=plain_ultralytics, lines=False)),
            (ours, train(case.ours, model, data, {**tiny, **ours_only}, lines=False)),
        ):
            total.seconds += timed_once.seconds
            total.save_seconds += timed_once.save_seconds
    return plain, ours


def cells(plain: Any, ours: Any) -> list[str]:
    """Return a row of the table, plain Ultralytics' figure before ours."""
    from .counting import waits
    from .goals import ratio

    def both(one: float, other: float, digits: int = 0) -> str:
        return f"{one:.{digits}f} → {other:.{digits}f}"

    per_step = [(found.step, found.steps) for found in (plain, ours)]
    copies = [
        f"{s.h2d['pageable', 'blocking'] / n:.0f} + {s.h2d['pinned', 'non_blocking'] / n:.0f}" for s, n in per_step
    ]
    launches = [s.launches / n for s, n in per_step]
    by_plain = {ratio(held, plain.peaks[moment]): moment for moment, held in ours.peaks.items()}
    return [
        f"{both(*launches)} ({ratio(*reversed(launches)):.2f} x)",
        both(*(waits(s) / n for s, n in per_step), digits=1),
        " → ".join(copies),
        both(*(s.bytes_h2d / n / 1000 for s, n in per_step), digits=1),
        both(*(found.peak_memory / 2**20 for found in (plain, ours)), digits=1),
        f"{max(by_plain):.2f} x ({by_plain[max(by_plain)]})" if by_plain else "-",
        f"{ratio(ours.least_seconds, plain.least_seconds):.2f} x" if ours.seconds else "-",
        f"{ratio(ours.least_save_seconds, plain.least_save_seconds):.2f} x" if ours.save_seconds else "-",
        both(*(waits(found.validation) / found.images for found in (plain, ours)), digits=1),
        both(*(waits(found.save) for found in (plain, ours))),
    ]


HEADINGS = [
    "model, optimizer, precision",
    "launches a step",
    "waits a step",
    "copies a step, pageable + pinned",
    "kB a step",
    "peak MiB",
    "highest peak of all moments",
    "host time",
    "save time without flushes",
    "waits an image, validation",
    "waits a checkpoint",
]


def lines_of(name: str, found: Any) -> list[str]:
    """Say at which lines the host waited, which copied from pageable memory, and what memory each moment took."""
    from .counting import lines

    copies: Counter[str] = Counter()
    for (kind, line), n in found.step.h2d_lines.items():
        copies[f"{line} (copy, {' '.join(kind)})"] += n / found.steps  # type: ignore[assignment]
    parts = [
        ("a step", lines(found.step, found.steps)),
        ("a step", copies),
        ("an image, validation", lines(found.validation, found.images)),
        ("a checkpoint", lines(found.save, 1)),
    ]
    peaks = [f"  {name} {held / 2**20:6.1f} MiB: {moment}" for moment, held in found.peaks.items()]
    return peaks + [f"  {name} {n:6.2f} {per}: {line}" for per, counter in parts for line, n in counter.most_common()]


def by_version(versions: list[str], cases: list[Case], console: Console) -> int:
    """Print what a step of ours does on older versions, and fail where it isn't near the installed one's."""
    from ..matrix.__main__ import CACHE
    from .versions import VERSIONS, lost, step

    CACHE.mkdir(parents=True, exist_ok=True)
    versions = versions or list(VERSIONS)
    table = Table("launches, waits a step", *versions, "installed")
    failures: list[str] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        for case in progress.track(cases, description="training"):
            newest = step(None, case, CACHE)
            assert newest
            row = []
            for version in versions:
                found = step(version, case, CACHE)
                row.append(f"{found.launches:.0f}, {found.waits:.1f}" if found else "-")
                failures += lost(version, case, found, newest) if found else []
            table.add_row(str(case), *row, f"{newest.launches:.0f}, {newest.waits:.1f}")
    console.print(table)
    for line in failures:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    print(f"{len(cases)} cases, {len(failures)} goals lost")
    return 1 if failures else 0


def by_ranks(cases: list[Case], console: Console) -> int:
    """Print what a step of two ranks does, and fail where ours does more than plain Ultralytics."""
    from ..datasets import WRITERS
    from .ranks import HEADINGS, cells, lost, step

    table = Table(*HEADINGS)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        for case in cases:
            target = Path(scratch, case.task)
            target.mkdir(exist_ok=True)
            data = str(WRITERS[case.task](target, images=16))  # type: ignore[call-arg]
            plain, ours = (step(case, data, ours=of_ours) for of_ours in (False, True))
            rounded = step(case, data, ours=True, xpu_bf16_gradients=True)
            table.add_row(str(case), *cells(plain, ours))
            table.add_row(f"{case}, xpu_bf16_gradients", *cells(plain, rounded))
            failures += lost(case, plain, ours, rounded)
    console.print(table)
    for line in failures:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    print(f"{len(cases)} cases, {len(failures)} goals lost")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(dict.fromkeys(case.model for case in CASES)))
    parser.add_argument("--optimizers", nargs="+", default=["AdamW", "MuSGD"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--versions", nargs="*", help="of Ultralytics; alone: a sample", metavar="VERSION")
    parser.add_argument("--ranks", action="store_true", help="count the steps of two ranks, and nothing else")
    parser.add_argument("--untimed", action="store_true", help="leave the host's time out")
    parser.add_argument(
        "--lines", action="store_true", help="name the lines that wait or copy, and the moments' memory"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table for a README")
    args = parser.parse_args()
    console = Console(width=None if os.isatty(1) else 200)
    cases = [
        case
        for case in CASES
        if case.model in args.models and case.optimizer in args.optimizers and case.precision in args.precisions
    ]
    if args.versions is not None:
        return by_version(args.versions, cases, console)
    if args.ranks:
        return by_ranks(cases, console)
    failures: list[str] = []
    table = Table(*HEADINGS)
    rows: list[list[str]] = []
    named: list[str] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with tempfile.TemporaryDirectory() as scratch, Progress(*columns, console=console) as progress:
        directory = Path(scratch)
        prepare(directory)
        from ..datasets import WRITERS
        from .counting import SETTINGS
        from .goals import lost

        batch_bytes = SETTINGS["batch"] * 3 * SETTINGS["imgsz"] ** 2
        data: dict[str, str] = {}
        for case in progress.track(cases, description="training"):
            if case.task not in data:
                target = directory / case.task
                target.mkdir()
                data[case.task] = str(WRITERS[case.task](target, images=16))  # type: ignore[call-arg]
            plain, ours = run(case, data[case.task], directory, timed=not args.untimed)
            rows.append([str(case), *cells(plain, ours)])
            table.add_row(*rows[-1])
            failures += lost(case, plain, ours, batch_bytes)
            if args.lines:
                named += [str(case), *lines_of("plain", plain), *lines_of("ours ", ours)]
    if args.markdown:
        for row in [HEADINGS, ["---"] * len(HEADINGS), *rows]:
            print("| " + " | ".join(row) + " |")
    else:
        console.print(table)
    for line in [*named, *failures]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    print(f"{len(rows)} cases, {len(failures)} goals lost")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
