"""A conftest.py above Ultralytics' own: which of its tests can run without a network, and what became of each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

SKIPPED = {
    "test_python.py::test_data_annotator": "minutes and gigabytes for what a random detector finds",
}
"""Tests that aren't run, by the beginning of their id, with the reason."""

OFFLINE = "environment is offline"
WITH_STAND_INS = {"test_track_stream[yolo26n.pt]", "test_track_stream", "test_train_multi", "test_train_scratch"}
"""Tests that are skipped offline, but for which there are stand-ins; of the trackers', one model's."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    done = {line["test"] for line in _written()}
    items[:] = [item for item in items if item.nodeid.removeprefix("tests/") not in done]
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        for beginning, reason in SKIPPED.items():
            if name.startswith(beginning):
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.name in WITH_STAND_INS:
            item.own_markers = [mark for mark in item.own_markers if mark.kwargs.get("reason") != OFFLINE]


def pytest_runtest_logstart(nodeid: str) -> None:
    """Write down which test begins, because it can end the process."""
    _write(test=nodeid.removeprefix("tests/"), result="started", detail="")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down what a test came to, before the next one can end the process."""
    if report.when != "call" and report.passed:
        return
    detail = getattr(getattr(report.longrepr, "reprcrash", None), "message", "") or str(report.longrepr or "")[-300:]
    test = report.nodeid.removeprefix("tests/")
    _write(test=test, result=report.outcome, detail=detail, seconds=round(report.duration, 1))


def _written() -> list[dict[str, Any]]:
    outcomes = Path(os.environ["OUTCOMES"])
    return [json.loads(line) for line in outcomes.read_text(encoding="utf-8").splitlines()] if outcomes.exists() else []


def _write(**line: Any) -> None:
    with open(os.environ["OUTCOMES"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
