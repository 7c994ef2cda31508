"""What the runner of Ultralytics' own tests calls a failure."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ..upstream import __main__ as suite
from ..upstream.__main__ import Outcome

PASSED, FAILED = Outcome("passed"), Outcome("failed", "AssertionError: assert 1 == 2")


@pytest.mark.parametrize(
    ("cpu", "xpu", "expected", "fails"),
    [
        ({"a": PASSED}, {"a": PASSED}, {}, False),
        ({"a": FAILED}, {"a": FAILED}, {}, False),
        ({"a": PASSED}, {"a": FAILED}, {}, True),
        ({"a": PASSED}, {"a": Outcome("skipped")}, {}, True),
        ({"a": PASSED}, {}, {}, True),
        ({"a": PASSED}, {"a": FAILED}, {"a": "no such kernel"}, False),
        ({"a": PASSED}, {"a": PASSED}, {"a": "no such kernel"}, True),
        ({}, {}, {}, True),
    ],
    ids=["passes", "fails on both", "fails", "skipped", "process died", "expected", "expected but passes", "none ran"],
)
def test_suite_fails_where_a_test_passes_on_the_cpu_alone_unexpectedly(
    monkeypatch: pytest.MonkeyPatch,
    cpu: dict[str, Outcome],
    xpu: dict[str, Outcome],
    expected: dict[str, str],
    fails: bool,
) -> None:
    monkeypatch.setitem(suite.EXPECTED, "8.4.190", expected)
    assert suite.report(Console(file=io.StringIO()), "8.4.190", cpu, xpu) is fails


def test_suite_reads_the_outcome_of_each_test_and_an_error_in_its_teardown_as_a_failure(tmp_path: Path) -> None:
    ends = [
        ("passes", "started"),
        ("passes", "passed"),
        ("fails", "failed"),
        ("breaks", "passed"),
        ("breaks", "failed"),
        ("skips", "skipped"),
    ]
    lines = [json.dumps({"test": f"test_a.py::{name}", "result": result, "detail": ""}) for name, result in ends]
    (tmp_path / "test_a.py.jsonl").write_text("\n".join(lines))
    found = suite.read(tmp_path, ["test_a.py", "test_died.py"])
    assert {test: outcome.result for test, outcome in found.items()} == {
        "test_a.py::passes": "passed",
        "test_a.py::fails": "failed",
        "test_a.py::breaks": "failed",
        "test_a.py::skips": "skipped",
    }


def test_suite_goes_on_after_a_test_that_ends_the_process(tmp_path: Path) -> None:
    shutil.copy(Path(suite.__file__).with_name("offline.py"), tmp_path / "conftest.py")
    (tmp_path / "test_a.py").write_text(
        "import os, signal\n"
        "def test_first(): pass\n"
        "def test_killed(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def test_exits(): os._exit(0)\n"
        "def test_last(): assert False\n"
    )
    outcomes = tmp_path / "test_a.py.jsonl"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "test_a.py"]
    suite.run_to_the_end(command, outcomes, cwd=tmp_path, env={**os.environ, "OUTCOMES": str(outcomes)})
    found = suite.read(tmp_path, ["test_a.py"])
    assert {test.removeprefix("test_a.py::test_"): outcome.result for test, outcome in found.items()} == {
        "first": "passed",
        "killed": "failed",
        "exits": "failed",
        "last": "failed",
    }
    assert found["test_a.py::test_killed"].detail == "its process ended with status -9"
