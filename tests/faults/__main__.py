"""Let each fault happen at each moment of a training, on several versions of Ultralytics, and print what came of it.

`python -m tests.faults` takes the sample that CI has time for, `--all` every pair on every version. `--kills 100` kills
a process that saves so many times.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..matrix.__main__ import overlay
from ..matrix.checks import make_data
from .scenario import EPOCHS

HERE = Path(__file__).parent
VERSIONS = ["8.3.0", "8.4.60", "8.4.190"]
LOST, DISK, KILLED = 75, 74, -9
GOES_ON = 0
MOST_GROWTH = 0.02  # of memory, from the fifth epoch on
SEGMENT = 2 << 20  # bytes that PyTorch's allocator takes at once, which is more than 2 % of so small a training
PAIRS: dict[tuple[str, str], int] = {
    **{("out of memory", m): GOES_ON for m in ("first batch", "mid-epoch", "optimizer", "validation", "last epoch")},
    **{("error 39", m): GOES_ON for m in ("first batch", "mid-epoch", "validation")},
    **{("error 40", m): GOES_ON for m in ("first batch", "mid-epoch", "optimizer", "validation", "final evaluation")},
    **{
        ("device lost", m): LOST
        for m in ("first batch", "mid-epoch", "optimizer", "validation", "saving", "last epoch")
    },
    **{("kill -9", m): KILLED for m in ("first batch", "mid-epoch", "validation", "saving", "results.csv")},
    ("kill -9", "final evaluation"): KILLED,
    **{("full disk", m): DISK for m in ("saving", "results.csv", "final evaluation")},
    ("NaN", "mid-epoch"): GOES_ON,
}
"""The pairs that mean something, and the exit status that the training must have."""

SAMPLE = [
    ("error 40", "first batch"), ("error 39", "mid-epoch"), ("out of memory", "optimizer"), ("error 40", "validation"),
    ("device lost", "first batch"), ("device lost", "mid-epoch"), ("device lost", "saving"), ("kill -9", "saving"),
    ("kill -9", "final evaluation"), ("full disk", "saving"), ("full disk", "final evaluation"), ("NaN", "mid-epoch"),
]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A fault at a moment, on a version of Ultralytics."""

    version: str
    fault: str
    moment: str

    @property
    def expected(self) -> int | None:
        """The exit status that it must have; None where the pair means nothing on that version."""
        status = PAIRS[self.fault, self.moment]
        if self.version != "8.4.190" and self.fault == "NaN":
            return None  # 8.3.0 doesn't recover from NaN, 8.4.60 does where a fitness above 0 collapses, too
        return status


def run(cell: Cell, cache: Path) -> str:
    """Train with a fault, and go on after it, each in a process of its own.

    Returns:
        "", or what is wrong.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_data(folder)
        status, said = _scenario(cell, cache, folder, cell.fault, cell.moment)
        if status != cell.expected:
            return f"exit status {status} instead of {cell.expected}: {said.get('error', said)}"
        if not said.get("finite", True):
            return "weights that aren't finite"
        if wrong := _broken(folder):
            return wrong
        last = folder / "run" / "weights" / "last.pt"
        if status == GOES_ON or (cell.moment == "first batch" and not last.exists()):
            return "" if status or _epochs(folder) == list(range(1, EPOCHS + 1)) else f"epochs {_epochs(folder)}"
        if torch.load(last, map_location="cpu", weights_only=False)["epoch"] + 1 in (0, EPOCHS):
            return ""  # it was trained to its end, and nothing is left to go on with
        status, said = _scenario(cell, cache, folder, "resume", "-")
        if status:
            return f"resuming ended with {status}: {said.get('error', said)}"
        return _broken(folder) or ("" if _epochs(folder) == list(range(1, EPOCHS + 1)) else f"epochs {_epochs(folder)}")


def _environment(version: str, cache: Path, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, overlay(version, cache))),
        "XPU_SIMULATOR": "arc-b580",
        "YOLO_CONFIG_DIR": str(cache),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }


def _scenario(cell: Cell, cache: Path, folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(HERE / "scenario.py"), *words, str(folder)]
    environment = _environment(cell.version, cache, folder)
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"scenario"')]
    said = json.loads(lines[-1]) if lines else {"error": (done.stderr.strip().splitlines() or [""])[-1][:300]}
    return done.returncode, said


def _script(name: str, number: int, version: str, cache: Path, folder: Path) -> dict[str, Any]:
    """Run a script of this folder, and return the line of JSON that it ends with, or its error."""
    command = [sys.executable, str(HERE / f"{name}.py"), str(folder), str(number)]
    environment = _environment(version, cache, folder)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    if not lines or done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no result"])[-1][:300]}
    said: dict[str, Any] = json.loads(lines[-1])
    return said


def _broken(folder: Path) -> str:
    """Return which file of a run isn't whole."""
    for path in folder.glob("run/weights/*.pt"):
        try:
            torch.load(path, map_location="cpu", weights_only=False)
        except Exception as error:
            return f"{path.name} doesn't load: {error!r}"[:200]
    table = folder / "run" / "results.csv"
    rows = table.read_text().splitlines() if table.exists() else []
    return "results.csv has a part of a row" if len({row.count(",") for row in rows}) > 1 else ""


def _epochs(folder: Path) -> list[int]:
    return [int(row.partition(",")[0]) for row in (folder / "run" / "results.csv").read_text().splitlines()[1:]]


def kill(kills: int, version: str, cache: Path) -> str:
    """Kill a process that saves, many times.

    Returns:
        What came of it, as a sentence.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_data(folder)
        said = _script("kills", kills, version, cache, folder)
        if wrong := said.get("error") or said["broken"][:3]:
            return f"failed: {wrong}"
        for number in range(said["kept"]):
            shutil.rmtree(folder / "run")
            (folder / f"kept-{number}").rename(folder / "run")
            status, came = _scenario(Cell(version, "kill -9", "saving"), cache, folder, "resume", "-")
            if status or _broken(folder):
                return f"failed: resuming after one of them ended with {status}: {came.get('error', came)}"
        return f"{said['files']} files loaded, all of them; {said['kept']} runs resumed to their end"


def memory(epochs: int, version: str, cache: Path) -> str:
    """Train for many epochs, and compare the memory at their end with that after the fifth.

    Returns:
        What came of it, as a sentence.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_data(folder)
        said = _script("memory", epochs, version, cache, folder)
    if wrong := said.get("error"):
        return f"failed: {wrong}"
    text = ", ".join(f"{name} {said[name]:+.2%}" for name in ("allocated", "reserved", "host"))
    text += f", caches emptied in training steps: {said['emptied']}"
    grown = max(said["allocated"], said["host"]) > MOST_GROWTH
    grown |= said["reserved"] > MOST_GROWTH and said["reserved_bytes"] > SEGMENT
    return f"failed: {text}" if grown or said["emptied"] else text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every pair on every version")
    parser.add_argument("--versions", nargs="+", default=VERSIONS[-1:])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=25, help="of the training whose memory is looked at, 0 for none")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "ultralytics-versions")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    versions, pairs = (VERSIONS, list(PAIRS)) if args.all else (args.versions, SAMPLE)
    cells = [cell for v in versions for fault, moment in pairs if (cell := Cell(v, fault, moment)).expected is not None]

    console = Console(width=160 if not sys.stdout.isatty() else None)
    for version in versions:
        overlay(version, args.cache)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    results: dict[Cell, str] = {}
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(args.jobs) as pool:
        task = progress.add_task("faults", total=len(cells))
        for cell, wrong in zip(cells, pool.map(lambda one: run(one, args.cache), cells), strict=True):
            results[cell] = wrong
            progress.advance(task)
    table = Table("fault", "moment", *versions)
    for fault, moment in pairs:
        found = [results.get(Cell(version, fault, moment)) for version in versions]
        table.add_row(fault, moment, *("-" if wrong is None else "✗" if wrong else "✓" for wrong in found))
    console.print(table)
    failures = [f"{c.version}, {c.fault}, {c.moment}: {wrong}" for c, wrong in results.items() if wrong]
    for failure in failures:
        console.print(failure, soft_wrap=True, markup=False)
    after = {version: kill(args.kills, version, args.cache) for version in versions} if args.kills else {}
    for version, text in after.items():
        print(f"{args.kills} kills of a process that saves, {version}: {text}")
    over_time = {v: memory(args.epochs, v, args.cache) for v in versions} if args.epochs else {}
    for version, text in over_time.items():
        print(f"memory after {args.epochs} epochs beside that after 5, {version}: {text}")
    print(f"{len(results) - len(failures)} passed, {len(failures)} failed")
    return 1 if failures or any(text.startswith("failed") for text in [*after.values(), *over_time.values()]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
