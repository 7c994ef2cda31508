"""A model that is replayed as graphs learns what it learns without them, bit for bit."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import xpu_simulator
from xpu_simulator import faults
from yolo_xpu_trainer.policies import graphs
from yolo_xpu_trainer.policies.graphs.capture import Captured

from ..conftest import Train

pytestmark = pytest.mark.needs("torch.xpu.make_graphed_callables")

ARGUMENTS: dict[str, Any] = {
    "epochs": 2,
    "batch": 4,
    "nbs": 8,
    "warmup_epochs": 0,
    "optimizer": "AdamW",
    "xpu_cast_weights": True,
}


class Seen:
    """What a training's callbacks see."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.launches: list[int] = []
        self.replays: list[int] = []
        self._counting: Any = None

    def begin(self, trainer: Any) -> None:
        self._counting = xpu_simulator.count()
        self._counts = self._counting.__enter__()

    def end(self, trainer: Any) -> None:
        self._counting.__exit__(None, None, None)
        self.losses.append(trainer.loss.item())
        self.launches.append(self._counts.launches)
        self.replays.append(self._counts.launches_by_op.get("XPUGraph::replay", 0))

    def callbacks(self) -> dict[str, Callable[[Any], None]]:
        return {"on_train_batch_start": self.begin, "on_train_batch_end": self.end}


def trained(train: Train, with_graphs: bool, **arguments: Any) -> tuple[Any, Seen]:
    seen = Seen()
    trainer = train(callbacks=seen.callbacks(), xpu_graphs=with_graphs, **{**ARGUMENTS, **arguments})
    return trainer, seen


def lines(log: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in log if "graphs" in record.getMessage()]


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in model.state_dict().items()}


def compared(train: Train, **arguments: Any) -> tuple[Seen, Seen]:
    """Train with graphs and without, and see that both learn the same."""
    trainer, seen = trained(train, True, **arguments)
    other, expected = trained(train, False, **arguments)
    assert sum(seen.replays) > 0
    assert sum(expected.replays) == 0
    assert seen.losses == expected.losses
    for ours, theirs in ((trainer.model, other.model), (trainer.ema.ema, other.ema.ema)):
        weights = state(theirs)
        assert [name for name, value in state(ours).items() if not torch.equal(value, weights[name])] == []
    assert trainer.metrics == other.metrics
    checkpoints = [torch.load(each.last, weights_only=False, map_location="cpu") for each in (trainer, other)]
    averages = [state(checkpoint["ema"] or checkpoint["model"]) for checkpoint in checkpoints]
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())
    assert not [one for one in gc.get_objects() if type(one) is Captured]  # the memory is free again
    return seen, expected


def test_bf16_learns_what_it_learns_without_graphs_in_few_launches(train: Train) -> None:
    seen, expected = compared(train, amp="bf16", optimizer="SGD", batch=3)
    # of eight images the third batch has two
    assert seen.replays == [0, 4, 0, 2, 2, 0]
    assert expected.launches[3] - seen.launches[3] > 500
    assert expected.launches[4] - seen.launches[4] > 500
    assert seen.launches[5] == expected.launches[5]


@pytest.mark.parametrize(
    "arguments",
    [
        {"amp": "fp32"},
        {"amp": "fp32", "optimizer": "SGD", "xpu_host_counters": False, "xpu_channels_last": False, "val": False},
        {"amp": "fp16", "val": False},
        {"amp": "bf16", "model": "yolo26n.yaml", "xpu_cast_weights": False, "val": False},
        {"amp": "bf16", "task": "classify", "batch": 3, "dropout": 0.2, "freeze": 3, "optimizer": "MuSGD"},
        *({"amp": "bf16", "task": task, "val": False} for task in ("segment", "pose", "obb")),
    ],
    ids=str,
)
@pytest.mark.slow
def test_losses_weights_and_averages_are_those_without_graphs(train: Train, arguments: dict[str, Any]) -> None:
    compared(train, **arguments)


@pytest.mark.slow
def test_copies_under_way_are_waited_for(train: Train) -> None:
    with xpu_simulator.asynchronous():
        compared(train, amp="bf16", val=False, workers=1)


# ----------------------------------------------------------------------------------------------------- without graphs


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ({"world_size": 2}, "gradients of several GPUs are averaged within the backward"),
        ({"compile": True}, "compile=True makes kernels of its own"),
        ({"release": (2, 13)}, f"PyTorch {torch.__version__} has no graphs for training on XPUs; 2.14 has"),
    ],
    ids=str,
)
def test_a_run_that_can_not_have_graphs_is_told_why(
    obstacle: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(graphs, "torch_release", lambda: obstacle.get("release", (2, 14)))
    run = SimpleNamespace(options={graphs.GRAPHS: True}, is_worker=False, world_size=obstacle.get("world_size", 1))
    arguments = SimpleNamespace(compile=obstacle.get("compile", False))
    assert graphs.xpu_patches(SimpleNamespace(xpu=run, args=arguments)) == []
    (said,) = lines(log)
    assert said.endswith(f"XPU: xpu_graphs=True is ignored, because {reason}. The model runs without graphs.")


def given_up(train: Train, log: list[logging.LogRecord], **arguments: Any) -> tuple[str, list[int]]:
    """Train with graphs that are given up; return why, and the replays of each step."""
    _, seen = trained(train, True, **{"val": False, "amp": "bf16", **arguments})
    said = [line for line in lines(log) if "is ignored" in line]
    assert len(said) == 1
    assert seen.replays[-1] == 0
    return said[0], seen.replays


def test_images_of_several_sizes_go_without_graphs(train: Train, log: list[logging.LogRecord]) -> None:
    reason, replays = given_up(train, log, multi_scale=0.5, imgsz=64)
    assert "multi_scale changes the size of images" in reason
    assert sum(replays) == 0


def test_a_device_without_graphs_goes_without(train: Train, log: list[logging.LogRecord]) -> None:
    faults.no_graphs()
    try:
        reason, replays = given_up(train, log)
    finally:
        faults.clear()
    assert "capturing it failed (RuntimeError: level_zero backend is not supported by SYCL Graph extension.)" in reason
    assert sum(replays) == 0


def test_memory_that_runs_out_in_the_capture_costs_the_graphs_alone(
    train: Train, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("XPU out of memory.")

    monkeypatch.setattr(torch.xpu.XPUGraph, "capture_end", full)
    monkeypatch.setattr(torch.xpu.XPUGraph, "capture_begin", lambda *args, **kwargs: None)
    reason, _ = given_up(train, log)
    assert "memory ran out (OutOfMemoryError: XPU out of memory.)" in reason


def test_a_replay_that_computes_something_else_is_not_trained_with(
    train: Train, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Captured.replay_forward

    def stale(self: Captured, turn: object, images: torch.Tensor, held: Any) -> Any:
        return replay(self, turn, self._images, held)

    monkeypatch.setattr(Captured, "replay_forward", stale)
    reason, _ = given_up(train, log)
    assert "a replay differs from the model by" in reason


def _hook(trainer: Any) -> None:
    trainer.model.model[0].register_forward_hook(lambda module, inputs, output: None)


def _replace(trainer: Any) -> None:
    weight = trainer.model.model[0].bn.weight
    weight.data = weight.data.clone()


def _freeze(trainer: Any) -> None:
    trainer.model.model[0].conv.weight.requires_grad_(False)


def _set(trainer: Any) -> None:
    trainer.model.model[0].bn.momentum = 0.5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_hook, "a replay wouldn't call _hook.<locals>.<lambda>"),
        pytest.param(_replace, "weights of the model were replaced, frozen or unfrozen", marks=pytest.mark.slow),
        pytest.param(_freeze, "weights of the model were replaced, frozen or unfrozen", marks=pytest.mark.slow),
        pytest.param(_set, "a setting of the model was changed", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_is_changed_goes_on_without_graphs(
    train: Train, log: list[logging.LogRecord], change: Callable[[Any], None], reason: str
) -> None:
    seen = Seen()

    def begin(trainer: Any) -> None:
        if trainer.epoch == 1:
            change(trainer)

    arguments = {**ARGUMENTS, "amp": "bf16", "val": False, "xpu_graphs": True}
    train(callbacks={**seen.callbacks(), "on_train_epoch_start": begin}, **arguments)
    assert seen.replays == [0, 4, 0, 0]
    assert [reason in line for line in lines(log) if "is ignored" in line] == [True]


@pytest.mark.slow
def test_a_halved_batch_goes_on_without_graphs(train: Train, log: list[logging.LogRecord]) -> None:
    seen, ordered = Seen(), []

    def begin(trainer: Any) -> None:
        if trainer.epoch == 1 and not ordered:
            ordered.append(True)
            faults.out_of_memory(at_launch=30)
        seen.begin(trainer)

    try:
        train(
            callbacks={"on_train_batch_start": begin, "on_train_batch_end": seen.end},
            xpu_graphs=True,
            **{**ARGUMENTS, "val": False, "imgsz": 64},
        )
    finally:
        faults.clear()
    assert seen.replays[:2] == [0, 4]
    assert not any(seen.replays[-4:])
    assert ["the batch was changed from 4 to 2" in line for line in lines(log) if "is ignored" in line] == [True]


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.slow
def test_autobatch_counts_what_graphs_keep(train: Train, digits_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = 300 << 20
    monkeypatch.setenv("XPU_SIMULATOR_CAPACITY", str(capacity))
    found = []
    with xpu_simulator.use_profile("arc-b580"):
        for with_graphs in (True, False):
            gc.collect()  # models of runs before are in cycles
            torch.xpu.empty_cache()
            torch.xpu.reset_peak_memory_stats()
            arguments = {**ARGUMENTS, "batch": 0.6, "imgsz": 96, "val": False, "xpu_graphs": with_graphs}
            batch = train(**{**arguments, "epochs": 1, "data": digits_data}).batch_size
            found.append((batch, torch.xpu.max_memory_reserved()))
    (batch, peak), (larger, _) = found
    assert batch < 0.75 * larger
    assert peak < 0.75 * capacity
