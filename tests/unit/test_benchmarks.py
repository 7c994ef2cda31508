"""The benchmark's goals: each that is lost is named."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from xpu_simulator import Counts

from ..benchmarks import versions
from ..benchmarks.cases import CASES, Case
from ..benchmarks.counting import Counted
from ..benchmarks.goals import REACHED, lost

ROOT = Path(__file__).parents[2]
CASE = Case("yolo11n", "AdamW", "fp32")


def counted(waits: int = 2, launches: int = 850, pageable: int = 1) -> Counted:
    """Return what a training of one step might have done."""
    step = Counts(
        launches=launches, syncs=Counter({("item", "a line"): waits}), h2d={("pageable", "blocking"): pageable}
    )
    peaks = {"save": 1000}
    return Counted(step=step, steps=1, images=8, peak_memory=1000, peaks=peaks, seconds=[0.5, 0.7, 0.6])


def test_goals_that_are_reached_are_not_reported() -> None:
    assert list(lost(CASE, counted(launches=1000), replace(counted(), seconds=[0.1]), batch_bytes=100)) == []


@pytest.mark.parametrize(
    ("worse", "named"),
    [
        (counted(waits=4), "waits a step"),
        (counted(pageable=2), "pageable copies"),
        (counted(launches=990), "launches"),
        (replace(counted(), validation=Counts(syncs=Counter({("item", "a line"): 25}))), "in validation"),
        (replace(counted(), save=Counts(syncs=Counter({("item", "a line"): 11}))), "a checkpoint"),
        (replace(counted(), peak_memory=1200), "peak memory"),
        (replace(counted(), peaks={"save": 1200}), "peak memory, save"),
        (replace(counted(), seconds=[0.6]), "host time"),
    ],
)
def test_a_goal_that_is_lost_is_named(worse: Counted, named: str) -> None:
    worse = worse if named == "host time" else replace(worse, seconds=[0.1])
    (failure,) = lost(CASE, counted(launches=1000), worse, batch_bytes=100)
    assert failure.startswith("yolo11n AdamW")
    assert named in failure


@pytest.mark.parametrize(
    ("launches", "waits", "named"), [(1099, 2.1, []), (1101, 2, ["launches"]), (1000, 3, ["waits"])]
)
def test_an_older_version_that_does_more_in_a_step_is_named(launches: float, waits: float, named: list[str]) -> None:
    found = versions.lost("8.3.0", CASE, versions.Step(launches, waits), versions.Step(1000, 2))
    assert [line.removeprefix(f"8.3.0 {CASE}: ").split()[0] for line in found] == named


def test_every_case_has_goals() -> None:
    assert {case.model for case in CASES} == set(REACHED)
