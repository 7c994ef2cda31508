"""Which switches win: one at a time, then the winners together; each against the default, in alternation.

Nothing here knows what is measured, or how: a function is called that measures once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..measurement.cases import Window

__all__ = ["MIN_GAIN", "MIN_WINDOWS", "Budget", "Entry", "Outcome", "Verdict", "search", "verdict"]

MIN_WINDOWS = 3
"""With fewer windows of it or of the default, nothing is said of an entry."""

MIN_GAIN = 0.02
"""A smaller gain isn't worth another default."""

_SHARE = 0.7  # of the time, for the switches one at a time

Verdict = Literal["faster", "slower", "within noise", "failed", "not enough time"]


class Budget:
    """A time that is not exceeded.

    Args:
        seconds: How long it is, from now on.
        now: Tells the time in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._end = now() + seconds

    def now(self) -> float:
        """Return the time in seconds, from an arbitrary start."""
        return self._now()

    def left(self, share: float = 1.0) -> float:
        """Return the seconds that are left, negative when the time is over.

        Args:
            share: The part of the whole time that may be used.
        """
        return self._end - self._seconds * (1 - share) - self._now()


@dataclass
class Entry:
    """One configuration, and what was measured of it.

    Attributes:
        settings: Arguments other than the defaults, by keyword.
        windows: The measurements, in order.
        failure: Why there are none, "" unless it failed.
        dropped: Whether it was left out after the first round, because others were faster and the time short.
        took: How long each measurement took as a whole, in seconds.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    failure: str = ""
    dropped: bool = False
    took: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The settings in words."""
        return ", ".join(f"{keyword}={value}" for keyword, value in self.settings.items()) or "the defaults"

    def seconds(self) -> list[float]:
        """Return the seconds a step, by window."""
        return [window.seconds / window.steps for window in self.windows]

    @property
    def median(self) -> float | None:
        """Median seconds a step, None unless measured."""
        return statistics.median(self.seconds()) if self.windows else None

    def gain(self, default: Entry) -> float | None:
        """Return how much faster than the default this is, as a fraction of the default's speed; None if unknown."""
        if self.median is None or default.median is None:
            return None
        return default.median / self.median - 1


def verdict(entry: Entry, default: Entry) -> Verdict:
    """Say whether an entry is faster than the default.

    It is where its slowest window is faster than the default's fastest, and its median by `MIN_GAIN`.
    """
    if entry.failure:
        return "failed"
    gain = entry.gain(default)
    if gain is None or min(len(entry.windows), len(default.windows)) < MIN_WINDOWS:
        return "not enough time"
    if gain >= MIN_GAIN and max(entry.seconds()) < min(default.seconds()):
        return "faster"
    if gain <= -MIN_GAIN and min(entry.seconds()) > max(default.seconds()):
        return "slower"
    return "within noise"


@dataclass
class Outcome:
    """What was measured, and what to take.

    Attributes:
        default: The defaults, measured beside the switches one at a time.
        singles: A switch each.
        final_default: The defaults, measured beside the finalists.
        finals: The winners together, and the best one alone if there are several; empty where none has won.
        chosen: What to take; None where it takes more time to tell, without settings where the defaults stay.
    """

    default: Entry = field(default_factory=Entry)
    singles: list[Entry] = field(default_factory=list)
    final_default: Entry = field(default_factory=Entry)
    finals: list[Entry] = field(default_factory=list)
    chosen: Entry | None = None

    @property
    def is_undecided(self) -> bool:
        """Whether the time was too short for a switch."""
        return any(verdict(entry, self.default) == "not enough time" for entry in self.singles)

    @property
    def gain(self) -> float:
        """How much faster the choice is than the defaults."""
        return (self.chosen.gain(self.final_default) or 0.0) if self.chosen and self.chosen.settings else 0.0


def search(
    outcome: Outcome,
    switches: Iterable[Mapping[str, Any]],
    measure: Callable[[Entry], None],
    budget: Budget,
    repeats: int,
) -> None:
    """Find the fastest configuration.

    What won one at a time is measured again, together, beside the defaults: with many switches one of them may win by
    chance, and what each gives needn't add up.

    Args:
        outcome: Receives the results as they come, so that there are some if this is interrupted.
        switches: Settings to try one at a time. Of those with the same keyword the best is taken.
        measure: Measures an entry once: appends a window, or says why it fails.
        budget: The time for everything.
        repeats: Windows of each entry, at most.
    """
    outcome.singles = [Entry(settings) for settings in switches]
    _in_turn([outcome.default, *outcome.singles], measure, budget, repeats, _SHARE)
    winners = _best_of_each_keyword(outcome)
    if not winners:
        outcome.chosen = None if outcome.is_undecided and not _any_decided(outcome) else Entry()
        return
    together = Entry({keyword: value for entry in winners for keyword, value in entry.settings.items()})
    outcome.finals = [together, *([Entry(winners[0].settings)] if len(winners) > 1 else [])]
    _in_turn([outcome.final_default, *outcome.finals], measure, budget, repeats)
    verdicts = {id(entry): verdict(entry, outcome.final_default) for entry in outcome.finals}
    faster = [entry for entry in outcome.finals if verdicts[id(entry)] == "faster"]
    if faster:
        outcome.chosen = max(faster, key=lambda entry: entry.gain(outcome.final_default) or 0.0)
    elif "not enough time" not in verdicts.values():
        outcome.chosen = Entry()


def _any_decided(outcome: Outcome) -> bool:
    return any(verdict(entry, outcome.default) in ("slower", "within noise") for entry in outcome.singles)


def _best_of_each_keyword(outcome: Outcome) -> list[Entry]:
    """Return the entries that are faster than the default, the fastest first, one a keyword."""
    faster = [entry for entry in outcome.singles if verdict(entry, outcome.default) == "faster"]
    best: dict[tuple[str, ...], Entry] = {}
    for entry in sorted(faster, key=lambda entry: entry.median or 0.0):
        best.setdefault(tuple(entry.settings), entry)
    return list(best.values())


def _in_turn(
    entries: list[Entry], measure: Callable[[Entry], None], budget: Budget, repeats: int, share: float = 1.0
) -> None:
    """Measure entries in turn, there and back again, so that a drift, such as of the temperature, affects all."""
    for turn in range(repeats):
        for entry in entries if turn % 2 == 0 else reversed(entries):
            if entry.failure or entry.dropped:
                continue
            if budget.left(share) <= _expected(entry, entries):
                return
            began = budget.now()
            measure(entry)
            entry.took.append(budget.now() - began)
            if entries[0].failure:  # of the defaults, without which nothing can be compared
                return
        if turn == 0:
            _drop_hopeless(entries, budget.left(share))


def _expected(entry: Entry, entries: list[Entry]) -> float:
    """Return how long the next measurement of an entry will take; 0 before the first of all."""
    known = entry.took or [seconds for other in entries for seconds in other.took]
    return known[-1] if entry.took else statistics.median(known) if known else 0.0


def _drop_hopeless(entries: list[Entry], left: float) -> None:
    """Leave out the slowest of the first round where the time doesn't suffice for all; never the default."""
    default, *others = entries
    candidates = [entry for entry in others if entry.windows and not entry.failure]
    candidates.sort(key=lambda entry: entry.median or 0.0)
    needed = (MIN_WINDOWS - 1) * _expected(default, entries)
    for entry in candidates:
        needed += (MIN_WINDOWS - 1) * _expected(entry, entries)
        entry.dropped = needed > left
