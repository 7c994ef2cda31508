"""`python -m tests.hardware`, with small programs in the place of its parts."""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from yolo_xpu_trainer import commands

from ..hardware.__main__ import PARTS, ROOT, Part, main, suite

pytestmark = pytest.mark.slow


def python(name: str, code: str, seconds: float = 60) -> Part:
    return Part(name, (sys.executable, "-c", code), seconds)


def bundle(output: Path) -> dict[str, str]:
    """Return the bundle's files, by name."""
    (file,) = output.glob("*.zip")
    with zipfile.ZipFile(file) as packed:
        return {name: packed.read(name).decode("utf-8", errors="replace") for name in packed.namelist()}


def test_parts_that_fail_hang_or_cannot_start_end_no_other_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hangs = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    parts = [
        python("crashes", "import os; print('begun', flush=True); os.abort()"),
        python(
            "hangs", f"{hangs}; open('pid.txt', 'w').write(str(p.pid)); print('begun', flush=True); time.sleep(600)", 3
        ),
        Part("missing", (str(tmp_path / "no-such-program"),), 60),
        python(
            "works", "print('done'); open('chart.png', 'wb').write(b'PNG'); open('weights.pt', 'wb').write(b'secret')"
        ),
    ]
    began = time.monotonic()
    assert main(["--output", str(tmp_path)], parts) == 1
    assert time.monotonic() - began < 60
    files = bundle(tmp_path)
    assert {"crashes.txt", "hangs.txt", "works.txt", "summary.md", "chart.png"} <= set(files)
    assert "weights.pt" not in files  # texts and charts alone
    assert files["works.txt"].strip() == "done"
    assert "begun" in files["crashes.txt"]
    assert "begun" in files["hangs.txt"]
    said = files["summary.md"]
    assert "| hangs | FAILED | ended by its time limit of 3 s |" in said
    assert "| missing | FAILED | can't be started" in said
    assert "| works | ok | ended with status 0 |" in said
    assert not psutil.pid_exists(int(files["pid.txt"])) or (
        psutil.Process(int(files["pid.txt"])).status() == psutil.STATUS_ZOMBIE
    )
    printed = capsys.readouterr().out
    assert "Not as it should be: crashes, hangs, missing" in printed
    assert "Attach " in printed


def test_a_suite_that_takes_too_long_tells_why_tests_failed(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = xpu_hardware: a test of the device\n")
    (folder / "test_stub.py").write_text(
        "import time\nimport pytest\n\n"
        "pytestmark = pytest.mark.xpu_hardware\n\n\n"
        "def test_fails():\n    assert 'computed' == 'expected'\n\n\n"
        "def test_hangs():\n    time.sleep(600)\n\n\n"
        "@pytest.mark.parametrize('i', range(40))\ndef test_is_slow(i):\n    time.sleep(1)\n"
    )
    assert main(["--output", str(tmp_path / "out")], [suite(30, folder)]) == 1
    files = bundle(tmp_path / "out")
    assert "| tests | FAILED | ended with status" in files["summary.md"]  # and not by the script
    told = files["tests.txt"]
    assert "AssertionError: assert 'computed' == 'expected'" in told
    assert re.search(r"Timeout \(0:00:10\)!(.*\n)+?.* in test_hangs\b", told)  # printed while it hung
    assert "test_is_slow[39]" not in told


def test_the_bundle_names_neither_the_user_nor_paths_but_our_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "jane"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setattr(getpass, "getuser", lambda: "janedoe")
    test = "test_the_bundle_names_neither_the_user_nor_paths_but_our_tests"
    lines = [
        str(home / "runs"),
        str(ROOT / "tests"),
        "by janedoe",
        "hf_abcdefgh12345678",
        r"C:\Users\jane\x",
        test,
        sys.executable,
    ]
    code = f"import json, os; lines = {lines!r}; print(*lines, os.getcwd(), sep='\\n')"
    code += "; json.dump(lines, open('a.json', 'w'))"
    assert main(["--output", str(home / "out")], [python("tells", code)]) == 0
    files = bundle(home / "out")
    for text in files.values():
        assert "jane" not in text
        assert "abcdefgh12345678" not in text
        assert str(ROOT) not in text
    told = files["tells.txt"].splitlines()
    assert told[0].endswith("runs")
    assert told[1].startswith("<repository>")
    assert told[5] == test
    assert told[6:] == ["<python>", "<bundle>"]
    assert len(json.loads(files["a.json"])) == len(lines)


def test_every_part_is_a_command_that_there_is() -> None:
    for part in PARTS:
        program, flag, module, *words = part.command
        assert (program, flag) == (sys.executable, "-m")
        if module == "yolo_xpu_trainer":
            assert commands.build_parser(words[0]).parse_args(words)
        else:
            assert (module, part.folder) == ("pytest", ROOT)
    assert sum(part.seconds for part in PARTS) <= 15 * 60


def test_it_looks_at_the_simulated_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XPU_SIMULATOR", "arc-b580")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])))
    doctor = next(part for part in PARTS if part.name == "doctor")
    main(["--output", str(tmp_path), "--only", "doctor"], [doctor])
    files = bundle(tmp_path)
    assert "Arc B580" in files["doctor.txt"]
    assert "### `yolo-xpu doctor`" in files["doctor.md"]
    assert "A simulated XPU, arc-b580: no hardware was tried" in files["summary.md"]
