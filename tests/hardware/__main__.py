"""Try this package on an Intel GPU, in about 15 minutes, and pack what came out into one file for an issue.

`python -m tests.hardware` runs doctor, the self-check of numerics, the tests that need no simulated GPU, and a short
bench. Each is a child process with a time limit; where one fails, hangs or crashes, the next goes on. The bundle holds
their output without user and host names, home directories and tokens. Nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from yolo_xpu_trainer.commands.doctor.report import Private
from yolo_xpu_trainer.diagnosis import Machine

ROOT = Path(__file__).resolve().parents[2]
FORM = "https://github.com/yolo-xpu-trainer/yolo-xpu-trainer/issues/new?template=hardware.yml"
PACKAGES = ("yolo-xpu-trainer", "torch", "torchvision", "ultralytics", "numpy")
TEXTS = (".txt", ".md", ".json")
PICTURES = (".png",)
_UNTIL_DEAD = 20.0  # seconds; a process in a driver's call may outlive SIGKILL


@dataclass(frozen=True)
class Part:
    """Something to run.

    Attributes:
        name: Its name, and that of the file with its output.
        command: The program and its arguments.
        seconds: How long it may take.
        fine: Its exit statuses where it found nothing wrong.
        folder: Where it runs, by default where the bundle's files are.
    """

    name: str
    command: Sequence[str]
    seconds: float
    fine: tuple[int, ...] = (0,)
    folder: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Attributes:
        part: The part.
        said: Its end, in words.
        fine: Whether nothing was found wrong.
        seconds: How long it took.
    """

    part: Part
    said: str
    fine: bool
    seconds: float


def suite(seconds: float, folder: Path = ROOT) -> Part:
    """Return the part that runs a folder's tests of the device.

    pytest tells why tests failed at its end only. So it ends in time: no test begins late, one that doesn't end is
    ended where Python can, and what a test is waiting for is printed before, in case it can't.
    """
    limits = (f"--session-timeout={seconds * 5 / 6:g}", f"--timeout={seconds * 2 / 5:g}", "--maxfail=0")
    waiting = ("-o", f"faulthandler_timeout={seconds / 3:g}")
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "xpu_hardware",
        "-v",
        "--tb=short",
        "--maxfail=0",
        *limits,
        *waiting,
    )
    return Part("tests", command, seconds, folder=folder)


_YOLO_XPU = (sys.executable, "-m", "yolo_xpu_trainer")
_BENCH = ("bench", "--devices", "xpu", "--precision", "fp32,bf16", "--steps", "8", "--repeats", "1")
PARTS = (
    Part("doctor", (*_YOLO_XPU, "doctor", "--verbose", "--report", "doctor.md"), 60, fine=(0, 1)),
    Part("numerics", (*_YOLO_XPU, "doctor", "--numerics"), 180),
    suite(360),
    Part("bench", (*_YOLO_XPU, *_BENCH, "--output", "bench"), 300),
)


def run(part: Part, folder: Path) -> Outcome:
    """Run a part until it ends, or its time is over, with its output in a file."""
    environment = {**os.environ, "YOLO_AUTOINSTALL": "false", "PYTHONIOENCODING": "utf-8", "COLUMNS": "160"}
    began = time.monotonic()
    with (folder / f"{part.name}.txt").open("wb") as output:
        try:
            process = subprocess.Popen(
                list(part.command),
                cwd=part.folder or folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # which Windows ignores
            )
        except OSError as error:
            return Outcome(part, f"can't be started: {error.strerror}", False, 0.0)
        try:
            status = process.wait(part.seconds)
            said = f"ended with status {status}"
        except subprocess.TimeoutExpired:
            status, said = None, f"ended by its time limit of {part.seconds:g} s"
        finally:
            _end(process)
    return Outcome(part, said, status in part.fine, time.monotonic() - began)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its own."""
    own: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        own = psutil.Process(process.pid).children(recursive=True)
    for one in (process, *own):
        with contextlib.suppress(OSError, psutil.Error):
            one.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_UNTIL_DEAD)


def cleaner(folder: Path) -> Callable[[str], str]:
    """Return what takes names, paths and tokens out of a text, and leaves the names of our tests in.

    Long names with a digit look like tokens to doctor's report, which has no tests in it.
    """
    private = Private(Machine())
    tests = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text("utf-8"))
    }
    places = {str(folder): "<bundle>", str(ROOT): "<repository>", sys.executable: "<python>"}
    if sys.prefix != sys.base_prefix:  # which may be /usr
        places[sys.prefix] = "<environment>"
    places |= {path.replace("\\", "\\\\"): name for path, name in places.items()}

    def clean(text: str) -> str:
        for path in sorted(places, key=len, reverse=True):
            text = text.replace(path, places[path])
        pieces = re.split(r"\b(test_\w+)", text)
        return "".join(piece if piece in tests else private(piece) for piece in pieces)

    return clean


def _cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    """Return what a JSON file holds, cleaned: in the file backslashes are doubled, which hides paths."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(each, clean) for each in value]
    if isinstance(value, dict):
        return {clean(key): _cleaned(each, clean) for key, each in value.items()}
    return value


def pack(folder: Path, target: Path) -> None:
    """Write the texts of a folder, cleaned, and its charts into a zip file."""
    clean = cleaner(folder)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as bundle:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.suffix in PICTURES:
                bundle.writestr(name, file.read_bytes())
            elif file.suffix in TEXTS:
                text = file.read_text("utf-8", errors="replace")
                with contextlib.suppress(ValueError):
                    if file.suffix == ".json":
                        text = json.dumps(_cleaned(json.loads(text), clean), indent=1, ensure_ascii=False)
                bundle.writestr(name, clean(text))


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return what was run and how it ended, as Markdown."""
    lines = ["# Measured on hardware", ""]
    if simulated := os.environ.get("XPU_SIMULATOR"):
        lines += [f"**A simulated XPU, {simulated}: no hardware was tried.**", ""]
    lines += [f"{platform.platform()}, Python {platform.python_version()}", ""]
    lines += [f"- {name} {_version(name)}" for name in PACKAGES]
    lines += ["", "| part | | end | seconds |", "|---|---|---|---|"]
    lines += [f"| {o.part.name} | {'ok' if o.fine else 'FAILED'} | {o.said} | {o.seconds:.0f} |" for o in outcomes]
    return "\n".join(lines) + "\n"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"


def main(argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Run every part and pack the bundle.

    Returns:
        0 where every part found nothing wrong, 1 where one did, 130 where the user interrupted it.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.hardware", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("xpu-hardware"), metavar="DIR", help="folder for the files")
    names = [part.name for part in parts]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some parts (default: all)")
    args = parser.parse_args(argv)
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    folder = (args.output / stamp).resolve()
    folder.mkdir(parents=True)

    chosen = [part for part in parts if part.name in args.only]
    print(f"At most {sum(part.seconds for part in chosen) / 60:.0f} minutes. Files: {folder}", flush=True)
    outcomes: list[Outcome] = []
    interrupted = False
    for part in chosen:
        print(f"{part.name} (at most {part.seconds:g} s) ...", end=" ", flush=True)
        try:
            outcomes.append(run(part, folder))
        except KeyboardInterrupt:
            interrupted = True
            outcomes.append(Outcome(part, "interrupted by the user", False, 0.0))
        print(f"{outcomes[-1].said}, {outcomes[-1].seconds:.0f} s", flush=True)
        if interrupted:
            break
    (folder / "summary.md").write_text(summary(outcomes), encoding="utf-8")
    bundle = folder.parent / f"xpu-hardware-{stamp}.zip"
    pack(folder, bundle)
    failed = [outcome.part.name for outcome in outcomes if not outcome.fine]
    print(
        f"\nNot as it should be: {', '.join(failed)}. That is what a report is for." if failed else "\nAll went well."
    )
    print(f"Attach {bundle}\nto the form at {FORM}")
    print("User and host names, home directories and what looks like a token are taken out. Look into it all the same.")
    return 130 if interrupted else int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
