"""Run what this package promises on many versions of Ultralytics, and print a table: version by capability.

`python -m tests.matrix` takes the sample that CI has time for, `--all` every version, `--versions 8.3.0 8.4.60` those.
One torch serves them all: each version is put in front of it, `pip install --no-deps --target`. It is the installed
one, or with `--torch 2.5.1 2.8.0` each of those, in an environment of its own (5 GB). `--floor` takes the oldest
torch and the oldest Ultralytics that this package is for.
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
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

VERSIONS = [
    "8.3.0",
    "8.3.40",
    "8.3.80",
    "8.3.120",
    "8.3.163",
    "8.3.200",
    "8.3.240",
    "8.4.0",
    "8.4.21",
    "8.4.60",
    "8.4.87",
    "8.4.110",
    "8.4.111",
    "8.4.140",
    "8.4.190",
]
SAMPLE = ["8.3.0", "8.4.60", "8.4.110", "8.4.190"]
FLOOR = ("2.5.1", "8.3.0")  # of torch and of Ultralytics, as pyproject.toml has them
PROFILES = ["arc-b580", "arc-a770"]
CACHE = Path(tempfile.gettempdir()) / "ultralytics-versions"
CHECKS = Path(__file__).with_name("checks.py")
ROOT = Path(__file__).resolve().parents[2]
INSTALLED = "installed"  # the torch of this interpreter

# What versions need beside what the newest needs: their wheels' METADATA, and numpy.trapz, which numpy 2.4 removed.
OLD_REQUIREMENTS = ["tqdm", "pandas<3", "pytz", "seaborn", "py-cpuinfo"]
OLD_NUMPY = "numpy==2.1.1"


def interpreter(torch: str, cache: Path) -> str:
    """Return a Python that has a release of torch, with this package and the simulator as they are in the tree."""
    if torch == INSTALLED:
        return sys.executable
    folder = cache / f"torch-{torch}"
    python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    needed = [f"torch=={torch}", "torchvision", f"ultralytics=={VERSIONS[-1]}", "cloudpickle"]
    needed += [f"{ROOT}[demo]", str(ROOT / "tests" / "simulator")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *needed], check=True)
    return python


def overlay(version: str, cache: Path) -> list[Path]:
    """Return the directories that put a version of Ultralytics in front of the installed one, made where missing."""
    made = [_installed(cache / f"ultralytics-{version}", [f"ultralytics=={version}"])]
    shutil.rmtree(made[0] / "tests", ignore_errors=True)  # which would be found in the place of this package
    numbers = tuple(map(int, version.split(".")))
    if numbers <= (8, 3, 163):
        made.append(_installed(cache / "old-requirements", OLD_REQUIREMENTS))
    if numbers < (8, 3, 120):
        made.append(_installed(cache / "old-numpy", [OLD_NUMPY]))
    return made


def _installed(target: Path, requirements: list[str]) -> Path:
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as partial:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                partial,
                *requirements,
            ]
            subprocess.run(command, check=True)
            Path(partial).rename(target)
            Path(partial).mkdir()  # for the context manager to remove
    return target


def run_checks(python: str, version: str, profile: str, cache: Path) -> dict[str, str]:
    """Run every check for one version on one simulated device, each in a process of its own.

    Returns:
        "ok", or the last line of what went wrong, by capability.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, overlay(version, cache))),
            "XPU_SIMULATOR": profile,
            "YOLO_CONFIG_DIR": scratch,
            "YOLO_OFFLINE": "true",
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
        }
        done = subprocess.run(
            [python, str(CHECKS), version, profile],
            cwd=scratch,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"capability"')]
    results = {line["capability"]: line["result"] for line in lines}
    if done.returncode or not results:
        results["process"] = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every version, on every profile")
    parser.add_argument("--floor", action="store_true", help=f"torch {FLOOR[0]} with Ultralytics {FLOOR[1]}")
    parser.add_argument("--torch", nargs="+", default=[INSTALLED], help="releases to install, such as 2.5.1")
    parser.add_argument("--versions", nargs="+", default=SAMPLE)
    parser.add_argument("--profiles", nargs="+", default=PROFILES[:1])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many cells at a time")
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = parser.parse_args()
    versions, profiles = (VERSIONS, PROFILES) if args.all else (args.versions, args.profiles)
    releases = args.torch
    if args.floor:
        releases, versions = [[each] for each in FLOOR]
    args.cache.mkdir(parents=True, exist_ok=True)

    console = Console(width=160 if not sys.stdout.isatty() else None)
    results: dict[tuple[str, str, str], dict[str, str]] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        cells = [(torch, version, profile) for torch in releases for version in versions for profile in profiles]
        task = progress.add_task("", total=len(cells))
        pythons = {}
        for torch in releases:
            progress.update(task, description=f"getting torch {torch}")
            pythons[torch] = interpreter(torch, args.cache)
        for version in versions:
            progress.update(task, description=f"getting {version}")
            overlay(version, args.cache)

        def check(cell: tuple[str, str, str]) -> dict[str, str]:
            torch, *rest = cell
            return run_checks(pythons[torch], *rest, args.cache)

        with ThreadPoolExecutor(args.jobs) as pool:
            progress.update(task, description="checking")
            for cell, found in zip(cells, pool.map(check, cells), strict=True):
                results[cell] = found
                progress.advance(task)

    capabilities = list(dict.fromkeys(c for found in results.values() for c in found))
    table = Table("PyTorch", "Ultralytics", "device", *capabilities)
    for cell, found in results.items():
        marks = [{"ok": "✓"}.get(found.get(c, "-"), "-" if c not in found else "✗") for c in capabilities]
        table.add_row(*cell, *marks)
    console.print(table)
    failures = [
        f"{' '.join(cell)} {capability}: {result}"
        for cell, found in results.items()
        for capability, result in found.items()
        if result != "ok"
    ]
    for failure in failures:
        console.print(failure, soft_wrap=True, markup=False)
    passed = sum(result == "ok" for found in results.values() for result in found.values())
    print(f"{passed} passed, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
