"""Run Ultralytics' own tests on the CPU without this package, and on a simulated XPU with it, and compare.

`python -m tests.upstream` takes both versions; arguments after `--` go to pytest (`-- -k predict`). The tests come from
Ultralytics' source distribution; weights, data sets and videos that they would download are small stand-ins.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from .data_sets import write_data_sets
from .expected import EXPECTED

HERE = Path(__file__).parent
VERSIONS = ["8.3.0", "8.4.190"]

# What tests want beside Ultralytics' own requirements: trackers, solutions, ONNX; without their dependencies on numpy.
REQUIREMENTS = [
    "aiohappyeyeballs", "aiohttp", "aiosignal", "attrs", "flatbuffers", "frozenlist", "lap", "ml_dtypes", "multidict",
    "onnx", "onnxruntime", "onnxslim", "propcache", "protobuf", "shapely", "yarl",
]  # fmt: skip
OLD_REQUIREMENTS = [
    "tqdm",
    "pandas<3",
    "pytz",
    "seaborn",
    "py-cpuinfo",
    "lxml",
    "numpy==2.1.1",
    "pillow<12",
    "onnxscript",
    "onnx_ir",
]

CPU = {"YOLO_XPU_AUTOLOAD": "0"}
XPU = {"XPU_SIMULATOR": "arc-b580"}

STARTED = "started"
COMPLETE = (0, 1, 5)
"""With these pytest says that it came to the end: all passed, some failed, there was none."""


@dataclass(frozen=True)
class Outcome:
    """What became of a test: "passed", "failed", "skipped", or "missing" where its process ended before it."""

    result: str
    detail: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", nargs="+", default=VERSIONS, choices=VERSIONS, dest="versions")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ultralytics-suite")
    parser.add_argument("--files", nargs="+", help="of tests/, such as test_engine.py; all of them by default")
    parser.add_argument("--reuse-cpu", action="store_true", help="take the CPU's results of the last run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="2 or more: CPU and XPU at a time")
    # those that start the command `yolo` for each of its modes take two minutes on two busy cores
    parser.add_argument("--timeout", type=int, default=900, help="seconds that a test may take")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    args = parser.parse_args()
    console = Console(width=160 if not sys.stdout.isatty() else None)
    failed = False
    for version in args.versions:
        cpu, xpu = run_version(version, args)
        failed |= report(console, version, cpu, xpu)
    return int(failed)


def run_version(version: str, args: argparse.Namespace) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
    """Run a version's tests, and return their outcomes on the CPU and on the XPU."""
    source = prepare(version, args.folder)
    files = args.files or sorted(file.name for file in (source / "tests").glob("test_*.py"))
    options = [f"--timeout={args.timeout}", *args.pytest]
    cpu, xpu = args.folder / version / "cpu", args.folder / version / "xpu"
    runs = [(xpu, XPU)] if args.reuse_cpu else [(cpu, CPU), (xpu, XPU)]
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in [pool.submit(run_tests, source, run, files, variables, options) for run, variables in runs]:
            done.result()
    return read(cpu / "results", files), read(xpu / "results", files)


def prepare(version: str, folder: Path) -> Path:
    """Return a version's source tree with its tests and the stand-ins, made where missing."""
    done = folder / version / "source"
    if done.exists():
        return done
    with tempfile.TemporaryDirectory(dir=_made(folder / version)) as scratch:
        partial = Path(scratch)
        _pip("download", "--no-deps", "--no-binary", "ultralytics", "--dest", scratch, f"ultralytics=={version}")
        with tarfile.open(next(partial.glob("*.tar.gz"))) as archive:
            archive.extractall(partial, filter="data")
        tree = partial / f"ultralytics-{version}"
        more = [*REQUIREMENTS, *(OLD_REQUIREMENTS if version == "8.3.0" else [])]
        _pip("install", "--no-deps", "--target", str(tree / "requirements"), *more)
        shutil.copy(HERE / "clip.py", tree / "clip.py")
        write_data_sets(tree, tree / "datasets")
        subprocess.run([sys.executable, HERE / "stand_ins.py"], cwd=tree, env=_environment(tree, CPU), check=True)
        tree.rename(done)
    return done


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", arguments[0], "--quiet", *arguments[1:]], check=True)


def _environment(tree: Path, more: dict[str, str]) -> dict[str, str]:
    """Return variables for a process that finds this tree's Ultralytics, and neither network nor CUDA."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("YOLO_", "XPU_SIMULATOR"))}
    dead = "http://127.0.0.1:9"
    return {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "requirements")]),
        "YOLO_CONFIG_DIR": str(_made(tree / "settings")),
        "TORCH_HOME": str(tree / "torch_home"),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",  # 8.3.0 numbers its tests by the order of a set
        "MPLBACKEND": "Agg",
        "CUDA_VISIBLE_DEVICES": "",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), dead),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1"),
        **more,
    }


def run_tests(source: Path, run: Path, files: list[str], environment: dict[str, str], options: list[str]) -> None:
    """Run files of tests in a copy of the tree, a process for each, and keep outcomes and the output."""
    shutil.rmtree(run, ignore_errors=True)
    tree = run / "tree"
    shutil.copytree(source, tree, symlinks=True)
    shutil.rmtree(tree / "settings", ignore_errors=True)
    shutil.copy(HERE / "offline.py", tree / "conftest.py")
    _set_directories(tree, environment)
    results = _made(run / "results")
    for file in files:
        outcomes = results / f"{file}.jsonl"
        pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-o", "addopts=", f"--rootdir={tree}"]
        variables = _environment(tree, {**environment, "OUTCOMES": str(outcomes)})
        with (results / f"{file}.log").open("w") as log:
            run_to_the_end(
                [*pytest, *options, f"tests/{file}"], outcomes, cwd=tree, env=variables, stdout=log, stderr=log
            )


def run_to_the_end(command: list[str], outcomes: Path, **more: Any) -> None:
    """Run a process of tests, and where a test ends it, another for those that are left.

    Args:
        command: It runs the tests that `outcomes` doesn't name.
        outcomes: Where the process writes that a test begins and what it came to. A test that ends it is a failure.
        **more: Arguments of `subprocess.run`.
    """
    while True:
        before = len(_lines(outcomes))
        code = subprocess.run(command, check=False, **more).returncode
        lines = _lines(outcomes)
        ended = {line["test"] for line in lines if line["result"] != STARTED}
        fatal = [line["test"] for line in lines if line["test"] not in ended]
        with outcomes.open("a", encoding="utf-8") as file:
            for test in fatal:
                line = {"test": test, "result": "failed", "detail": f"its process ended with status {code}"}
                file.write(json.dumps(line) + "\n")
        if len(lines) == before or (not fatal and code in COMPLETE):
            return


def _lines(outcomes: Path) -> list[dict[str, Any]]:
    text = outcomes.read_text(encoding="utf-8") if outcomes.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def _set_directories(tree: Path, environment: dict[str, str]) -> None:
    """Write settings with absolute paths, because tests change their working directory, and the font of plots."""
    code = "import sys; from ultralytics import settings; settings.update(dict(a.split('=') for a in sys.argv[1:]))"
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for directory in (tree / "settings", _made(tree / "settings" / "Ultralytics")):  # 8.3.0, 8.4.190
        shutil.copy(font, directory / "Arial.ttf")
    names = {"weights_dir": "weights", "datasets_dir": "datasets", "runs_dir": "runs"}
    arguments = [f"{key}={tree / name}" for key, name in names.items()]
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, cwd=tree, env=_environment(tree, environment), check=True)


def read(results: Path, files: list[str]) -> dict[str, Outcome]:
    """Read the outcome of each test that came to an end; an error in a teardown is a failure."""
    found: dict[str, Outcome] = {}
    for line in (line for file in files for line in _lines(results / f"{file}.jsonl")):
        if line["result"] == "failed" or (line["result"] != STARTED and line["test"] not in found):
            found[line["test"]] = Outcome(line["result"], line["detail"])
    return found


def report(console: Console, version: str, cpu: dict[str, Outcome], xpu: dict[str, Outcome]) -> bool:
    """Print what differs, and return whether anything does that isn't expected."""
    expected = EXPECTED[version]
    counts = Table("Ultralytics", "run", "passed", "failed", "skipped")
    for name, found in (("CPU", cpu), ("XPU with the plugin", xpu)):
        results = [outcome.result for outcome in found.values()]
        counts.add_row(version, name, *(str(results.count(result)) for result in ("passed", "failed", "skipped")))
    console.print(counts)
    worse = {
        test: xpu.get(test, Outcome("missing"))
        for test, outcome in cpu.items()
        if outcome.result == "passed" and xpu.get(test, Outcome("missing")).result != "passed"
    }
    table = Table("passes on the CPU only", "on the XPU", "expected because")
    for test, outcome in worse.items():
        table.add_row(test, f"{outcome.result}: {outcome.detail[:300]}", expected.get(test, "[red]no[/red]"))
    if worse:
        console.print(table)
    both = [test for test, outcome in cpu.items() if outcome.result == "failed" == xpu.get(test, outcome).result]
    for test in both:
        console.print(f"fails on both: {test}: {cpu[test].detail[:160]}", markup=False, soft_wrap=True)
    mended = [test for test in expected if test in xpu and xpu[test].result == "passed"]
    for test in mended:
        console.print(f"passes again, so take it from the list: {test}", markup=False)
    return bool(mended) or any(test not in expected for test in worse) or not cpu


if __name__ == "__main__":
    raise SystemExit(main())
