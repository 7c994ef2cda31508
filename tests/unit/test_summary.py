"""What is made of a run's times: each second counts once, and advice is given where it is clear."""

from __future__ import annotations

import time
from typing import Any

import pytest

from yolo_xpu_trainer.policies.summary.figures import Summary
from yolo_xpu_trainer.run import Run
from yolo_xpu_trainer.stopwatch import STOPWATCH, Stopwatch, timed, timed_batches

GIB = 1 << 30
PAUSE = 0.02


def test_a_stretch_within_another_is_a_part_of_that_one() -> None:
    began = time.perf_counter()
    watch = Stopwatch("setup")
    with watch.during("validation"):
        time.sleep(PAUSE)
        with watch.during("saving"):
            time.sleep(PAUSE)
        watch.phase = "steps"
        time.sleep(PAUSE)
    time.sleep(PAUSE)
    watch.stop()
    took = time.perf_counter() - began
    assert watch.seconds["validation"] >= 3 * PAUSE
    assert watch.seconds["steps"] >= PAUSE
    assert "saving" not in watch.seconds
    assert sum(watch.seconds.values()) == pytest.approx(took, abs=PAUSE / 4)
    assert watch.times == {"validation": 1}


def test_a_stretch_ends_where_it_raises() -> None:
    watch = Stopwatch("steps")
    with pytest.raises(StopIteration), watch.during("data"):
        raise StopIteration
    time.sleep(PAUSE)
    watch.stop()
    assert watch.seconds["data"] < PAUSE <= watch.seconds["steps"]


def run_with(watch: Stopwatch | None) -> Run:
    run = Run(None, (0,), None)  # type: ignore[arg-type]
    if watch is not None:
        run.stash[STOPWATCH] = watch
    return run


def test_only_what_is_within_epochs_is_timed() -> None:
    watch = Stopwatch("setup")
    for phase in ("setup", "steps", "other"):
        watch.phase = phase
        with timed(run_with(watch), "targets"):
            pass
    with timed(run_with(None), "targets"):
        pass
    assert watch.times == {"targets": 1}


def test_the_first_batch_is_timed_apart() -> None:
    def batches() -> Any:
        time.sleep(PAUSE)
        yield {"img": [0]}  # not what it would be: it counts as no image
        yield "batch"

    watch = Stopwatch("steps")
    assert list(timed_batches(run_with(watch), batches())) == [{"img": [0]}, "batch"]
    watch.stop()
    assert watch.seconds["first_data"] >= PAUSE > watch.seconds["data"]
    assert (watch.batches, watch.images) == (2, 0)


def test_batches_of_a_run_that_is_not_timed_come_as_they_are() -> None:
    batches = iter([1])
    assert timed_batches(run_with(None), batches) is batches


def summary(**changes: Any) -> Summary:
    """Return that of a training which has 1000 steps in 100 s, and is done in 150 s."""
    given: dict[str, Any] = {
        "seconds": {"setup": 10.0, "steps": 90.0, "data": 1.0, "copies": 1.0, "targets": 8.0, "validation": 40.0},
        "times": {"data": 1000, "targets": 2000},
        "batches": 1000,
        "images": 16000,
        "total_memory": 12 * GIB,
        "peaks": {"reserved": 4 * GIB},
        "batch": 16,
        "nominal_batch": 64,
        "workers": 8,
        "processors": 16,
    }
    return Summary(**{**given, **changes})


def test_speed_and_shares() -> None:
    made = summary()
    assert made.images_per_second == 160
    shares = made.shares()
    assert shares["validation"] == pytest.approx(40 / 150, abs=1e-4)
    assert shares["syncs"] == pytest.approx(8 / 150, abs=1e-4)
    assert 0.999 < sum(shares.values()) <= 1
    assert str(made) == (
        "160 images/s in training; 2 min in all: 1% waiting for data, 1% copying batches, at least 5% waiting for the "
        "GPU, 27% validation; peak memory 4.0 of 12.0 GiB"
    )


@pytest.mark.parametrize("changes", [{"images": 0}, {"seconds": {"setup": 1.0, "data": 5.0}}], ids=["images", "steps"])
def test_no_speed_is_said_that_is_not_known(changes: dict[str, Any]) -> None:
    assert "images/s" not in str(summary(**changes))


SLOW = {"seconds": {"steps": 60.0, "data": 40.0}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        (SLOW, ["workers=16", "cache=disk"]),
        ({**SLOW, "processors": 8}, ["cache=disk"]),
        ({**SLOW, "workers": 0, "processors": 4}, ["workers=4", "cache=disk"]),
        ({**SLOW, "cached": True}, ["workers=16"]),
        ({**SLOW, "cached": True, "processors": 2}, []),
        ({**SLOW, "times": {"data": 2}}, []),
        ({"seconds": {"steps": 60.0, "first_data": 40.0}}, []),  # workers that start
        ({"readings": {"utilization": 30.0}}, ["batch=32"]),
        ({"readings": {"utilization": 90.0}}, []),
        ({"readings": {"utilization": 30.0}, "peaks": {"reserved": 8 * GIB}}, []),
        ({"readings": {"utilization": 30.0}, "peaks": {}}, []),
        ({"readings": {"utilization": 30.0}, "integrated": True}, []),
        ({"readings": {"utilization": 30.0}, "batch": 64}, []),  # a larger one would be another training
        ({"readings": {"utilization": 30.0}, "times": {"data": 20}}, []),
        ({"readings": {"utilization": 30.0}, **SLOW}, ["workers=16", "cache=disk"]),
        ({"seconds": {}}, []),
    ],
)
def test_advice_is_given_where_it_is_clear(changes: dict[str, Any], expected: list[str]) -> None:
    assert summary(**changes).advice() == expected


def test_energy_is_the_mean_power_over_the_time_that_it_was_read() -> None:
    made = summary(readings={"power_draw": 100.0, "utilization": 95.0}, sampled_seconds=140.0, images=32000, devices=2)
    assert made.energy == 14000
    assert made.images_per_joule == pytest.approx(16000 / 14000)
    assert "GPU 95% busy; 100 W, 1.14 images/J" in str(made)
    assert summary().as_dict()["energy"] is None
