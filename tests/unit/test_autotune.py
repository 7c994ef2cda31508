"""Which switches win, by figures that are made up."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from yolo_xpu_trainer.commands.autotune.search import Budget, Entry, Outcome, search, verdict
from yolo_xpu_trainer.commands.measurement.cases import Window

Seconds = Callable[[Mapping[str, Any], int], float]


class Bench:
    """Measures by a function of the settings and the number of the measurement; a measurement takes ten seconds."""

    def __init__(self, seconds: Seconds, minutes: float = 60, takes: float = 10) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self._seconds = seconds
        self._takes = takes
        self.budget = Budget(60 * minutes, lambda: self.now)

    def measure(self, entry: Entry) -> None:
        self.now += self._takes
        self.order.append(entry.label)
        seconds = self._seconds(entry.settings, len(self.order))
        if seconds <= 0:
            entry.failure = "out of memory"
        else:
            entry.windows.append(Window(images=16, seconds=seconds, steps=1, warmup_steps=8))

    def search(self, *switches: dict[str, Any], repeats: int = 5) -> Outcome:
        outcome = Outcome()
        search(outcome, switches, self.measure, self.budget, repeats)
        return outcome


def noise(n: int, size: float = 0.01) -> float:
    """Return a factor near 1, the same for the same n."""
    return 1 + size * ((n * 7919) % 11 - 5) / 5


A, B, C = {"a": False}, {"b": 0}, {"b": 2}


def test_winners_are_taken_together() -> None:
    bench = Bench(lambda s, n: noise(n) * (0.8 if "a" in s else 1) * {0: 0.9, 2: 0.85}.get(s.get("b"), 1))
    outcome = bench.search(A, B, C)
    assert [verdict(entry, outcome.default) for entry in outcome.singles] == ["faster"] * 3
    assert outcome.chosen is not None
    assert outcome.chosen.settings == {"a": False, "b": 2}
    assert outcome.gain == pytest.approx(1 / (0.8 * 0.85) - 1, rel=0.1)


def test_winners_that_disturb_each_other_leave_the_best_one() -> None:
    bench = Bench(lambda s, n: noise(n) * (1.1 if len(s) == 2 else 0.8 if "a" in s else 0.9 if s else 1))
    chosen = bench.search(A, B).chosen
    assert chosen is not None
    assert chosen.settings == A


@pytest.mark.parametrize("gain", [0.0, 0.01, 0.05])
def test_within_noise_the_default_stays(gain: float) -> None:
    bench = Bench(lambda s, n: noise(n, 0.1) * (1 - gain if s else 1))
    outcome = bench.search(A)
    assert verdict(outcome.singles[0], outcome.default) == "within noise"
    assert outcome.chosen == Entry()
    assert not outcome.finals


def test_random_noise_moves_a_default_in_one_of_a_hundred_searches_at_most() -> None:
    drawn = random.Random(0)
    moved = [
        Bench(lambda s, n: 1 + drawn.uniform(-0.03, 0.03)).search(*({str(i): False} for i in range(10))).chosen
        != Entry()
        for _ in range(400)
    ]
    assert sum(moved) <= 4


def test_random_noise_hides_no_switch_that_costs_a_tenth() -> None:
    drawn = random.Random(0)
    for _ in range(100):
        bench = Bench(lambda s, n: (0.9 if "a" in s else 1) * (1 + drawn.uniform(-0.03, 0.03)))
        chosen = bench.search(A, *({str(i): False} for i in range(10))).chosen
        assert chosen is not None
        assert A.items() <= chosen.settings.items()


def test_a_winner_by_chance_does_not_win_again() -> None:
    bench = Bench(lambda s, n: 0.9 if s and n <= 10 else 1.0)
    outcome = bench.search(A)
    assert verdict(outcome.singles[0], outcome.default) == "faster"
    assert outcome.chosen == Entry()


def test_a_drift_makes_nothing_win() -> None:
    outcome = Bench(lambda s, n: 1 - 0.01 * n).search(A, B)
    assert [verdict(entry, outcome.default) for entry in outcome.singles] == ["within noise"] * 2


def test_what_fails_is_left_out() -> None:
    bench = Bench(lambda s, n: 0.0 if "a" in s else 0.5 if s else 1)
    outcome = bench.search(A, B)
    assert outcome.singles[0].failure == "out of memory"
    assert bench.order.count("a=False") == 1
    assert outcome.chosen is not None
    assert outcome.chosen.settings == B


def test_measurements_alternate_there_and_back() -> None:
    bench = Bench(lambda s, n: 1)
    bench.search(A, B, repeats=3)
    forth = ["the defaults", "a=False", "b=0"]
    assert bench.order == [*forth, *reversed(forth), *forth]


@pytest.mark.parametrize("minutes", [0.1, 1, 3, 8])
@pytest.mark.parametrize("takes", [10.0, 25.0])
def test_the_time_is_kept(minutes: float, takes: float) -> None:
    bench = Bench(lambda s, n: 0.7 if "a" in s else 1, minutes, takes)
    bench.search(A, *({"b": n} for n in range(8)))
    assert bench.now <= max(60 * minutes, takes)  # nobody knows beforehand how long the first one takes


def test_in_a_short_time_the_slowest_are_dropped_after_a_round() -> None:
    bench = Bench(lambda s, n: 0.7 if s.get("b") == 3 else 1 + s.get("b", 0) / 10, minutes=5)
    outcome = bench.search(*({"b": n} for n in range(8)), repeats=3)
    assert [entry.dropped for entry in outcome.singles].count(True) == 3
    assert outcome.chosen is not None
    assert outcome.chosen.settings == {"b": 3}
    assert verdict(outcome.singles[7], outcome.default) == "not enough time"


def test_without_enough_windows_nothing_is_decided() -> None:
    outcome = Bench(lambda s, n: 0.5 if s else 1, minutes=0.5).search(A)
    assert outcome.chosen is None


def test_nothing_more_is_measured_where_the_defaults_fail() -> None:
    bench = Bench(lambda s, n: 1 if s else 0)
    assert bench.search(A, B).default.failure
    assert bench.order == ["the defaults"]
