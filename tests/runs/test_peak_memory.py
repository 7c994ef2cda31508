"""Memory: a run finishes wherever plain Ultralytics does, and holds no more at any moment."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import xpu_simulator

from .. import training
from ..conftest import Train
from ..datasets import WRITERS

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZES: dict[str, Any] = {"imgsz": 160, "batch": 16, "epochs": 2, "device": "xpu:0"}


@pytest.fixture
def limit(xpu: torch.device) -> Iterator[Callable[[float], None]]:
    """Return a function that sets how many MiB this process may have of the device."""
    gc.collect()  # a trainer and its model are a cycle: the last test's would count
    torch.xpu.empty_cache()
    total = torch.xpu.get_device_properties(xpu).total_memory
    yield lambda mib: torch.xpu.set_per_process_memory_fraction(mib * MIB / total)
    torch.xpu.set_per_process_memory_fraction(1.0)


@pytest.fixture
def batches(limit: Callable[[float], None], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[int]]:
    """Return a function that trains from `on_train_start` on in so many MiB, and returns each epoch's batch size."""

    def run(mib: float, images: int, task: str = "detect", settled: bool = True, **arguments: Any) -> list[int]:
        sizes: list[int] = []

        def start(trainer: Any) -> None:
            if settled:
                _settle(trainer)
            limit(mib)

        data = str(WRITERS[task](tmp_path_factory.mktemp(task), images=images))
        events = {"on_train_start": start, "on_train_epoch_start": lambda trainer: sizes.append(trainer.batch_size)}
        try:
            training.train(data, task, callbacks=events, project=str(tmp_path_factory.mktemp("runs")), **arguments)
        finally:
            limit(2**13)
            gc.collect()
            torch.xpu.empty_cache()
        return sizes

    return run


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("task", "amp", "mib"), [("detect", True, 104), ("detect", False, 132), ("segment", True, 150)]
)
def test_a_run_finishes_where_plain_ultralytics_does(
    batches: Callable[..., list[int]], task: str, amp: bool, mib: float, workers: int
) -> None:
    given = {**SIZES, "task": task, "amp": amp, "workers": workers}
    plain = batches(mib, images=16, plain=True, **given)
    assert 1 < plain[-1] < 16  # it was halved
    assert batches(mib, images=16, **given)[-1] >= plain[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_that_runs_out_after_the_first_epoch_halves_the_batch(
    batches: Callable[..., list[int]], workers: int
) -> None:
    # Plain Ultralytics finishes: its gradient scaler skips each of its few steps.
    batches(110, images=8, plain=True, settled=False, workers=workers, **SIZES)
    first, second, *_, last = batches(110, images=8, workers=workers, **SIZES)
    assert first == second == 16 > last


def test_an_epoch_that_is_done_again_has_its_own_learning_rate(train: Train) -> None:
    seen: list[tuple[int, int, float]] = []

    def start(trainer: Any) -> None:
        seen.append((trainer.epoch, trainer.batch_size, trainer.scheduler.get_last_lr()[0]))
        if trainer.epoch == 2 and trainer.batch_size == 4:
            xpu_simulator.faults.out_of_memory(at_launch=50)

    trainer = train(callbacks={"on_train_batch_start": start}, epochs=4, batch=4, warmup_epochs=0)
    rates = {epoch: {rate for e, _, rate in seen if e == epoch} for epoch in range(4)}
    assert {(epoch, batch) for epoch, batch, _ in seen} == {(0, 4), (1, 4), (2, 4), (2, 2), (3, 2)}
    assert all(len(of_epoch) == 1 for of_epoch in rates.values())
    assert max(rates[1]) > max(rates[2]) > max(rates[3])
    assert trainer.start_epoch == 0


@pytest.mark.parametrize(("moment", "ratio"), [("validate", 1.005), ("final_eval", 1.04), ("save_model", 1)])
def test_a_bf16_run_takes_what_plain_ultralytics_takes_in_fp16(train: Train, moment: str, ratio: float) -> None:
    # The final evaluation decodes boxes in float32, which is 4 % of so small a model and batch.
    peaks = []
    for plain in (True, False):
        gc.collect()
        base = training.trainer_of("detect", plain)
        peaks.append(0)

        def measured(self: Any, base: type = base) -> Any:
            torch.xpu.reset_peak_memory_stats()
            try:
                return getattr(super(made, self), moment)()  # noqa: B023 - called before the next class is made
            finally:
                peaks[-1] = torch.xpu.max_memory_allocated()

        made: Any = type(base.__name__, (base,), {moment: measured})
        train(trainer=made, plain=plain, callbacks={"on_train_start": _settle}, imgsz=160, batch=8, device="xpu:0")
    assert 0 < peaks[1] <= ratio * peaks[0]


def _settle(trainer: Any) -> None:
    """Start a gradient scaler at a scale at which no step is skipped, as each is at its own first one."""
    if trainer.scaler.is_enabled():
        trainer.scaler = torch.amp.GradScaler("xpu", init_scale=1.0)
