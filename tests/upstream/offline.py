"""A conftest.py above Ultralytics' own: which of its tests can run without a network."""

from __future__ import annotations

import pytest

SKIPPED: dict[str, str] = {}
"""Tests that aren't run, by the beginning of their id, with the reason."""

OFFLINE = "environment is offline"
WITH_STAND_INS = {"test_track_stream[yolo26n.pt]", "test_track_stream", "test_train_multi", "test_train_scratch"}
"""Tests that are skipped offline, but for which there are stand-ins; of the trackers', one model's."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        for beginning, reason in SKIPPED.items():
            if name.startswith(beginning):
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.name in WITH_STAND_INS:
            item.own_markers = [mark for mark in item.own_markers if mark.kwargs.get("reason") != OFFLINE]
