"""Memory that runs out halves the batch whatever its error says; a lost device ends a run with what goes on from it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import ultralytics.engine.trainer
from ultralytics import YOLO

import xpu_simulator
from xpu_simulator import faults
from xpu_simulator.profiles import PROFILES
from yolo_xpu_trainer import DeviceLostError, NotEnoughMemoryError, Precision, Run, devices
from yolo_xpu_trainer.policies import out_of_memory
from yolo_xpu_trainer.policies.out_of_memory import thrash
from yolo_xpu_trainer.policies.out_of_memory.step import Step

from ..conftest import Train, TrainingData
from ..datasets import WRITERS

MIB = 1 << 20

TEXTS = [
    None,
    faults.OUT_OF_DEVICE_MEMORY,
    faults.OUT_OF_RESOURCES,
    "Allocation is out of device memory on current platform.",
    "UR error: 40",
]


@pytest.fixture(autouse=True)
def _no_faults() -> Any:
    yield
    if devices.may_be_any():
        faults.clear()


def order_in_forward(trainer: Any, order: Callable[[], None]) -> None:
    """Give an order in the middle of the next forward, once."""
    layer = trainer.model.model[5]
    handle = layer.register_forward_pre_hook(lambda *args: (handle.remove(), order())[:0] or None)


def order_in_backward(trainer: Any, order: Callable[[], None]) -> None:
    """Give an order in the middle of the next backward, once."""
    weight = next(trainer.model.model[5].parameters())
    handle = weight.register_hook(lambda gradient: (handle.remove(), order())[:0] or None)


ORDERS = {"forward": order_in_forward, "backward": order_in_backward}


@pytest.mark.parametrize(
    ("text", "epoch", "moment"),
    [
        *((text, 0, "forward") for text in TEXTS),
        *((faults.OUT_OF_RESOURCES, 1, moment) for moment in ORDERS),
        (None, 0, "backward"),
        ("UR error: 40", 1, "backward"),
    ],
    ids=str,
)
def test_the_batch_is_halved(
    train: Train, log: list[logging.LogRecord], text: str | None, epoch: int, moment: str
) -> None:
    seen: list[tuple[int, int]] = []
    ordered: list[int] = []

    def fail(trainer: Any) -> None:
        seen.append((trainer.epoch, trainer.batch_size))
        if trainer.epoch == epoch and not ordered:
            ordered.append(1)
            ORDERS[moment](trainer, lambda: faults.out_of_memory(text=text))

    trainer = train(epochs=2, batch=4, val=False, amp=False, callbacks={"on_train_epoch_start": fail})
    assert ordered
    assert trainer.batch_size == 2
    assert seen == ([(0, 4), (0, 2), (1, 2)] if epoch == 0 else [(0, 4), (1, 4), (1, 2)])
    assert len([r for r in log if "Reducing to batch=2" in r.getMessage()]) == 1
    (at_the_end,) = [text for record in log if "memory ran out" in (text := record.getMessage())]
    assert "memory ran out 1 time in this run, which ended with batch=2 in training and 4 in" in at_the_end
    assert trainer.last.exists()


def test_it_is_halved_in_mixed_precision_as_well(train: Train) -> None:
    ordered: list[int] = []

    def fail(trainer: Any) -> None:
        if not ordered:
            ordered.append(1)
            order_in_forward(trainer, lambda: faults.out_of_memory(text=faults.OUT_OF_RESOURCES))

    assert train(batch=4, val=False, callbacks={"on_train_epoch_start": fail}).batch_size == 2


@pytest.mark.parametrize("text", [None, faults.OUT_OF_RESOURCES], ids=str)
@pytest.mark.parametrize("amp", [False, "fp16"])
def test_memory_that_runs_out_in_an_optimizers_step_halves_the_batch(
    train: Train, log: list[logging.LogRecord], text: str | None, amp: Any
) -> None:
    ordered: list[int] = []

    def fail(trainer: Any) -> None:
        def order(*args: Any) -> None:
            if not ordered:
                ordered.append(1)
                faults.out_of_memory(text=text)

        trainer.optimizer.register_step_pre_hook(order)

    seen: list[float] = []
    note = {"on_train_start": fail, "on_train_batch_end": lambda trainer: seen.append(float(trainer.loss.detach()))}
    trainer = train(epochs=2, batch=4, nbs=4, amp=amp, val=False, callbacks=note)
    assert ordered
    assert trainer.batch_size == 2
    assert all(map(torch.isfinite, map(torch.tensor, seen)))
    assert len([r for r in log if "Reducing to batch=2" in r.getMessage()]) == 1


def order_in_step(trainer: Any, number: int, launch: int) -> None:
    """Let memory run out at a launch within an optimizer's step, by its number, once."""
    steps: list[int] = []

    def order(*_: Any) -> None:
        steps.append(1)
        if len(steps) == number:
            faults.out_of_memory(at_launch=launch)

    trainer.optimizer.register_step_pre_hook(order)


@pytest.mark.parametrize("launch", [1, 2, 4])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(
    ("optimizer", "is_fused"), [("AdamW", True), ("SGD", True), ("AdamW", False), ("SGD", False)], ids=str
)
def test_an_optimizers_step_is_whole_or_not_made(
    train: Train, optimizer: str, is_fused: bool, step: int, launch: int
) -> None:
    arguments = {"batch": 4, "nbs": 4, "amp": False, "val": False, "optimizer": optimizer, "warmup_epochs": 0}

    def stepped(at_launch: int | None) -> list[dict[str, torch.Tensor]]:
        states: list[dict[str, torch.Tensor]] = []

        def note(trainer: Any) -> None:
            if len(states) < 3:
                kept = {
                    **trainer.model.state_dict(),
                    **{f"ema {k}": v for k, v in trainer.ema.ema.state_dict().items()},
                }
                states.append({name: value.clone() for name, value in kept.items()})

        def fail(trainer: Any) -> None:
            note(trainer)
            if at_launch:
                order_in_step(trainer, step, at_launch)

        train(
            callbacks={"on_train_start": fail, "on_train_batch_end": note},
            xpu_fused_optimizer=is_fused,
            **arguments,
        )
        return states

    *_, before, whole = stepped(None)[: step + 1]
    try:
        interrupted = stepped(launch)[step]
    except NotEnoughMemoryError:
        assert not is_fused  # such an optimizer works through its weights in many kernels
        return
    weights = [name for name, value in whole.items() if value.is_floating_point() and "running" not in name]
    changed = [name for name in weights if not torch.equal(interrupted[name], before[name])]
    if changed:  # the interrupted step was brought to its end
        different = {n: float((interrupted[n] - whole[n]).abs().max()) for n in weights}
        assert {name: difference for name, difference in different.items() if difference} == {}


@pytest.mark.slow
@pytest.mark.needs("torch.xpu.mem_get_info")
def test_an_allocator_that_thrashes_has_the_batch_halved_once(
    train: Train, digits_data: str, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = PROFILES["arc-b580"].properties
    assert properties is not None
    small = replace(PROFILES["arc-b580"], properties=replace(properties, total_memory=544 * MIB))
    monkeypatch.setitem(PROFILES, "small", small)
    size, most = 128 * MIB, 224 * MIB
    kept: list[torch.Tensor] = []

    def fill(trainer: Any) -> None:
        torch.xpu.empty_cache()
        kept.append(torch.empty(torch.xpu.mem_get_info()[0] - most - 32 * MIB, dtype=torch.uint8, device="xpu"))

    def take_more_than_before(trainer: Any) -> None:  # as images of growing sizes do: no cached block is large enough
        nonlocal size
        size = min(size + 2 * MIB, most)
        if trainer.batch_size == 4:
            torch.empty(size, dtype=torch.uint8, device="xpu")

    gc.collect()  # models of other tests are in cycles
    with xpu_simulator.use_profile("small"):
        before = torch.xpu.memory_stats().get("num_alloc_retries", 0)
        callbacks = {"on_train_start": fill, "on_train_batch_end": take_more_than_before}
        trainer = train(data=digits_data, epochs=3, batch=4, val=False, amp=False, callbacks=callbacks)
        assert torch.xpu.memory_stats()["num_alloc_retries"] - before >= 16
    assert trainer.batch_size == 2
    (said,) = [text for record in log if "Reducing to batch=2" in (text := record.getMessage())]
    assert "out of memory" in said


@pytest.mark.parametrize("final", [False, True], ids=["after an epoch", "final"])
@pytest.mark.parametrize("text", [None, faults.OUT_OF_RESOURCES], ids=str)
def test_validation_has_a_smaller_batch_of_its_own(
    train: Train, log: list[logging.LogRecord], text: str | None, final: bool
) -> None:
    ordered: list[int] = []
    ends: list[int] = []

    def fail(validator: Any) -> None:
        if len(ordered) < 2 and validator.training is not final:
            ordered.append(validator.dataloader.batch_size)
            faults.out_of_memory(at_launch=20, text=text)

    note = {"on_val_start": fail, "on_fit_epoch_end": lambda trainer: ends.append(trainer.epoch)}
    trainer = train(epochs=2, batch=4, callbacks=note)
    assert ordered == [8, 4]
    assert trainer.batch_size == 4
    assert trainer.test_loader.batch_size == 2
    assert len([r for r in log if "memory ran out in validation" in r.getMessage()]) == 2
    assert len(ends) == 3
    assert trainer.metrics


def test_a_run_that_does_not_fit_whatever_its_batch_says_what_to_do(train: Train) -> None:
    def fail(trainer: Any) -> None:
        trainer.model.model[5].register_forward_pre_hook(lambda *args: faults.out_of_memory(text="UR error: 39"))

    with pytest.raises(NotEnoughMemoryError) as refused:
        train(batch=4, imgsz=64, val=False, callbacks={"on_train_start": fail})
    text = str(refused.value)
    assert "The memory of xpu:0 Intel Arc B580 Graphics ran out in epoch 1 of 1 with batch=1" in text
    assert "smaller images than imgsz=64" in text
    assert "Nothing was saved of this run yet" in text
    assert isinstance(refused.value, torch.OutOfMemoryError)
    assert refused.value.batch == 1


@pytest.mark.parametrize("moment", list(ORDERS))
def test_a_lost_device_is_not_tried_again(train: Train, log: list[logging.LogRecord], moment: str) -> None:
    folder: list[Path] = []

    def lose(trainer: Any) -> None:
        folder.append(trainer.save_dir)
        if trainer.epoch == 1:
            ORDERS[moment](trainer, faults.device_lost)

    with pytest.raises(DeviceLostError) as ended:
        train(epochs=3, val=False, callbacks={"on_train_epoch_start": lose})
    last = folder[0] / "weights" / "last.pt"
    assert f"go on with `yolo train resume=True model={last}`" in str(ended.value)
    assert "in epoch 2 of 3" in str(ended.value)
    assert ended.value.checkpoint == str(last)
    assert torch.load(last, weights_only=False)["epoch"] == 0
    assert len(folder) == 2
    assert not [r for r in log if "Reducing to batch" in r.getMessage()]


def test_what_another_run_saved_in_the_folder_is_no_checkpoint_to_go_on_from(train: Train) -> None:
    arguments: dict[str, Any] = {"epochs": 2, "val": False, "name": "with a blank", "exist_ok": True}

    last = train(**arguments).last
    for lost, checkpoint in ((0, ""), (1, str(last))):

        def lose(trainer: Any, lost: int = lost) -> None:
            if trainer.epoch == lost:
                order_in_forward(trainer, faults.device_lost)

        faults.clear()
        with pytest.raises(DeviceLostError) as ended:
            train(callbacks={"on_train_epoch_start": lose}, **arguments)
        assert ended.value.checkpoint == checkpoint
        assert ("Nothing was saved of this run yet" in str(ended.value)) is (not checkpoint)
    assert f"`yolo train resume=True 'model={last}'`" in str(ended.value)


def test_resources_that_run_out_on_a_device_that_does_not_respond_are_a_lost_device(train: Train) -> None:
    def lose() -> None:
        faults.out_of_memory(text=faults.OUT_OF_RESOURCES)
        faults.device_lost(at_launch=2)

    with pytest.raises(DeviceLostError, match="UR_RESULT_ERROR_OUT_OF_RESOURCES"):
        train(val=False, callbacks={"on_train_epoch_start": lambda trainer: order_in_forward(trainer, lose)})


def test_an_error_of_the_users_own_stays_what_it_is(train: Train) -> None:
    def fail(trainer: Any) -> None:
        def hook(*args: Any) -> None:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        trainer.model.model[5].register_forward_pre_hook(hook)

    with pytest.raises(RuntimeError, match="cannot be multiplied") as raised:
        train(val=False, callbacks={"on_train_start": fail})
    assert type(raised.value) is RuntimeError


# The process's share of the memory


def test_a_run_takes_no_more_than_is_free_and_gives_the_limit_back(train: Train) -> None:
    if not hasattr(torch.xpu, "set_per_process_memory_fraction"):
        pytest.skip("PyTorch 2.10 is needed")
    seen: list[float] = []
    note = {"on_train_start": lambda trainer: seen.append(torch.xpu.get_per_process_memory_fraction(0))}
    assert torch.xpu.get_per_process_memory_fraction(0) == 1.0
    train(val=False, callbacks=note)
    assert 0.9 < seen[0] <= 1.0
    assert torch.xpu.get_per_process_memory_fraction(0) == 1.0
    torch.xpu.set_per_process_memory_fraction(0.5, 0)
    try:
        train(val=False, callbacks=note)
        assert torch.xpu.get_per_process_memory_fraction(0) == 0.5
    finally:
        torch.xpu.set_per_process_memory_fraction(1.0, 0)
    assert seen[1] == 0.5


@pytest.mark.xpu_profile("max-1550")
@pytest.mark.parametrize(("rank", "limited"), [(None, 1), ("0", 1), ("1", 0)])
def test_a_worker_limits_what_it_takes_of_its_own_device(
    xpu: torch.device, rank: str | None, limited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    seen: list[int] = []
    monkeypatch.setattr(torch.xpu, "set_per_process_memory_fraction", lambda share, i: seen.append(i), raising=False)
    monkeypatch.setattr(torch.xpu, "get_per_process_memory_fraction", lambda i: 1.0, raising=False)
    run = Run(devices.info(1), (1, 0), Precision("fp32", "a test asks for it"))
    with out_of_memory.xpu_around_run(SimpleNamespace(xpu=run)):
        assert seen == [limited]
    assert seen == [limited] * 2


@pytest.mark.parametrize(
    ("profile", "error"),
    [("arc-b580", "exhaustion_39"), ("arc-b580-overcommits", ""), ("arc-b580", "exhaustion_20")],
)
def test_a_driver_that_gives_more_than_there_is_does_not_fail_where_the_allocator_has_a_limit(
    data: TrainingData, tmp_path: Path, profile: str, error: str
) -> None:
    # torch-xpu-ops#3155, #1324: without a limit the kernels fail, in the end with DEVICE_LOST
    arguments = {"epochs": 1, "imgsz": 128, "batch": 8, "workers": 0, "plots": False, "val": False, "amp": False}
    script = (
        "import sys; from ultralytics import YOLO; model = YOLO('yolo11n.yaml')\n"
        f"model.train(data=sys.argv[1], project=sys.argv[2], **{arguments})"
    )
    environment = {
        **os.environ,
        "XPU_SIMULATOR": profile,
        "XPU_SIMULATOR_FAULTS": error,
        "XPU_SIMULATOR_CAPACITY": str(92 << 20),
    }
    command = [sys.executable, "-c", script, data("detect"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    if hasattr(torch.xpu, "set_per_process_memory_fraction"):
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Reducing to batch" in done.stdout + done.stderr
    else:  # before 2.10 nothing limits the allocator: a new process can go on, as `--restarts` does
        assert done.returncode
        *_, said = done.stderr.splitlines()
        assert "DeviceLostError" in said
        assert "most often because memory ran out" in said


@pytest.mark.parametrize("makes", ["all first", "one by one"])
def test_an_unfused_optimizer_that_updated_a_part_ends_the_run_or_starts_the_step_anew(
    xpu: torch.device, makes: str
) -> None:
    class OneByOne(torch.optim.Optimizer):
        def __init__(self, weights: Any) -> None:
            super().__init__(weights, {})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for number, weight in enumerate(group["params"]):
                    if number == 2:
                        raise torch.OutOfMemoryError("XPU out of memory")
                    self.state[weight]["average"] = torch.zeros_like(weight)
                    weight.data.sub_(1)

    weights = [torch.nn.Parameter(torch.ones(1, device=xpu)) for _ in range(3)]
    optimizer: Any = OneByOne(weights) if makes == "one by one" else torch.optim.Adam(weights, foreach=False)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    step = Step(optimizer)
    with contextlib.suppress(torch.OutOfMemoryError), step:
        if makes == "one by one":
            optimizer.step()
        step._begin()  # and memory ran out in making the state of the second weight
        optimizer.state[weights[0]].update(step=torch.zeros(1), exp_avg=torch.zeros(1))
        raise torch.OutOfMemoryError
    assert step.is_begun is (makes == "one by one")
    assert bool(optimizer.state) is (makes == "one by one")


def test_a_run_in_which_the_batch_cannot_be_halved_again_is_left_to_thrash(train: Train) -> None:
    trainer = train(batch=4, val=False)
    assert thrash._can_be_halved(trainer)
    trainer._oom_retries = 3
    assert not thrash._can_be_halved(trainer)
    trainer._oom_retries, trainer.batch_size = 0, 1
    assert not thrash._can_be_halved(trainer)


def test_mosaic_stays_closed_where_the_batch_is_halved_in_the_last_epochs(train: Train) -> None:
    closed: list[tuple[int, int]] = []
    ordered: list[int] = []

    def fail(trainer: Any) -> None:
        if trainer.epoch == 2 and not ordered:
            ordered.append(1)
            order_in_forward(trainer, lambda: faults.out_of_memory())

    def look(trainer: Any) -> None:
        first = trainer.train_loader.dataset.transforms.transforms[0]
        mosaic = first.transforms[0] if hasattr(first, "transforms") else first
        closed.append((trainer.batch_size, float(getattr(mosaic, "p", 0.0))))

    events = {"on_train_epoch_start": fail, "on_train_epoch_end": look}
    train(epochs=4, batch=4, close_mosaic=3, val=False, callbacks=events)
    assert [probability for _, probability in closed] == [1.0, 0.0, 0.0, 0.0]
    assert [batch for batch, _ in closed] == [4, 4, 2, 2]


def test_what_policies_add_to_a_run_is_not_called_in_the_next_one_of_the_model(train: Train) -> None:
    model = YOLO("yolo11n.yaml")
    before = {event: list(functions) for event, functions in model.callbacks.items()}
    train(model=model, xpu_exact_resume=True, val=False)
    assert {event: list(functions) for event, functions in model.callbacks.items()} == before
    train(model=model, val=False)


def test_a_lost_device_ends_a_sweep_over_several_data_sets(
    train: Train, tmp_path: Path, log: list[logging.LogRecord]
) -> None:
    if not hasattr(ultralytics.engine.trainer, "MultiTrainer"):
        pytest.skip("this Ultralytics has no sweeps")
    sets = [str(WRITERS["detect"](tmp_path / name, images=4)) for name in ("one", "two", "three")]
    begun: list[str] = []

    def lose(trainer: Any) -> None:
        begun.append(str(trainer.args.data))
        if len(begun) == 2:
            faults.device_lost()

    with pytest.raises(DeviceLostError):
        train(data=sets, callbacks={"on_train_start": lose})
    faults.clear()
    assert begun == sets[:2]
    (results,) = tmp_path.rglob("multitrain_results.json")
    assert "one" in results.read_text()
