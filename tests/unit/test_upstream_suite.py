"""What the runner of Ultralytics' own tests calls a failure."""

from __future__ import annotations

import io
import json
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
    ends = [("passes", "passed"), ("fails", "failed"), ("breaks", "passed"), ("breaks", "failed"), ("skips", "skipped")]
    lines = [json.dumps({"test": f"test_a.py::{name}", "result": result, "detail": ""}) for name, result in ends]
    (tmp_path / "test_a.py.jsonl").write_text("\n".join(lines))
    found = suite.read(tmp_path, ["test_a.py", "test_died.py"])
    assert {test: outcome.result for test, outcome in found.items()} == {
        "test_a.py::passes": "passed",
        "test_a.py::fails": "failed",
        "test_a.py::breaks": "failed",
        "test_a.py::skips": "skipped",
    }
