"""With `compile=True` what is faster goes on, and nothing is compiled twice: by Dynamo itself, without Inductor."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import BaseModel
from ultralytics.utils import torch_utils

import xpu_simulator
from yolo_xpu_trainer.policies import compile as compiling
from yolo_xpu_trainer.policies.compile import comparing

from ..conftest import Train

pytestmark = pytest.mark.skipif(
    not hasattr(torch_utils, "attempt_compile"), reason="before 8.3.200 or so Ultralytics doesn't compile"
)


class Compiler:
    """A compiler that leaves Dynamo's graphs as they are, with pauses where a test plants them."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0
        self.pause = 0.0
        self.error: Exception | None = None

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        if self.error is not None:
            raise self.error
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            time.sleep(self.pause)
            return graph.forward(*args)

        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    """Let Ultralytics compile by Dynamo, with this compiler in Inductor's place, which knows no simulated device."""
    torch._dynamo.reset()
    own, found = torch.compile, Compiler()
    monkeypatch.setattr(torch, "compile", lambda model, mode, backend: own(model, backend=found))
    monkeypatch.setattr(compiling, "problem", lambda index: None)
    yield found
    torch._dynamo.reset()  # it holds the models that it compiled


@pytest.fixture
def slow_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model take its time wherever it isn't compiled."""
    predict = BaseModel._predict_once

    def slowly(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            time.sleep(0.2)
        return predict(self, *args, **kwargs)

    monkeypatch.setattr(BaseModel, "_predict_once", slowly)


ARGUMENTS: dict[str, Any] = {"compile": True, "batch": 2, "epochs": 7, "val": False, "amp": "bf16"}
"""4 batches an epoch."""


def said(log: list[logging.LogRecord]) -> list[str]:
    return [text for record in log if "compil" in (text := record.getMessage()) and "XPU: " in text]


@pytest.mark.slow
def test_where_eager_steps_are_faster_they_go_on(
    train: Train, compiler: Compiler, log: list[logging.LogRecord]
) -> None:
    compiler.pause = 0.2
    trainer = train(**ARGUMENTS)
    (line,) = (text for text in said(log) if "a step takes" in text)
    assert "Eager steps go on; compile=False saves the compiling." in line
    assert compiler.calls == compiler.graphs * (2 + 8)  # two to warm up
    assert trainer.last.exists()


def test_where_compiled_steps_are_faster_they_go_on(
    train: Train, compiler: Compiler, slow_eager: None, log: list[logging.LogRecord]
) -> None:
    steps = 0

    def count(trainer: Any) -> None:
        nonlocal steps
        steps += 1

    train(callbacks={"on_train_batch_start": count}, **ARGUMENTS)
    (line,) = (text for text in said(log) if "a step takes" in text)
    assert "Compiled steps go on." in line
    assert compiler.calls == compiler.graphs * (steps - 1 - 8)


@pytest.mark.slow
def test_a_batch_of_another_shape_and_a_validation_are_not_compiled(
    train: Train, compiler: Compiler, slow_eager: None
) -> None:
    graphs: list[int] = []

    def look(trainer: Any) -> None:
        graphs.append(compiler.graphs)
        trainer.model(torch.zeros(1, 3, 64, 32, device=trainer.device))
        with torch.no_grad():
            trainer.model(torch.zeros(2, 3, 32, 32, device=trainer.device))
        trainer.model.eval()
        trainer.model(torch.zeros(2, 3, 32, 32, device=trainer.device))
        trainer.model.train()

    train(callbacks={"on_train_epoch_end": look}, **{**ARGUMENTS, "val": True})
    assert len(set(graphs)) == 1
    assert compiler.graphs == graphs[0] > 0


@pytest.mark.slow
def test_a_model_that_can_not_be_compiled_is_trained_without(
    train: Train, compiler: Compiler, log: list[logging.LogRecord]
) -> None:
    compiler.error = RuntimeError("no such instruction")
    trainer = train(**ARGUMENTS)
    (warning,) = (text for text in said(log) if "failed" in text)
    assert "compiling the model failed, and the run goes on without: " in warning
    assert "no such instruction" in warning
    assert trainer.last.exists()


@pytest.mark.slow
def test_another_batch_begins_the_comparison_anew(
    train: Train, compiler: Compiler, slow_eager: None, log: list[logging.LogRecord]
) -> None:
    def halve(trainer: Any) -> None:
        if trainer.epoch == 5:
            trainer.batch_size = 1

    train(callbacks={"on_train_epoch_start": halve}, **{**ARGUMENTS, "epochs": 11})
    assert len([text for text in said(log) if "a step takes" in text]) == 2


@pytest.mark.slow
def test_every_step_is_compiled_where_that_is_asked_for(
    train: Train, compiler: Compiler, log: list[logging.LogRecord]
) -> None:
    train(**{**ARGUMENTS, "epochs": 1}, xpu_compare_compiled=False)
    assert compiler.calls == compiler.graphs * 4
    assert not said(log)


@pytest.mark.slow
def test_images_of_several_sizes_are_left_to_the_compiler(
    train: Train, compiler: Compiler, log: list[logging.LogRecord]
) -> None:
    train(**{**ARGUMENTS, "epochs": 1}, multi_scale=True)
    (line,) = said(log)
    assert line == "XPU: compiled steps aren't compared with eager ones, because of multi_scale=True."


@pytest.mark.slow
def test_weights_are_cast_together_in_eager_steps_alone(train: Train, compiler: Compiler) -> None:
    casts: list[int] = []
    counting: Any = None

    def begin(trainer: Any) -> None:
        nonlocal counting
        counting = xpu_simulator.count()
        casts.append(counting.__enter__())

    def end(trainer: Any) -> None:
        counting.__exit__(None, None, None)
        casts[-1] = casts[-1].launches_by_op.get("aten::_foreach_copy_", 0)

    compiler.pause = 0.2
    trainer = train(callbacks={"on_train_batch_start": begin, "on_train_batch_end": end}, **ARGUMENTS)
    compiled = [*comparing._WARM_UP, *comparing._TURNS]
    assert [bool(number) for number in casts[1 : len(compiled)]] == [not step for step in compiled[1:]]
    assert all(casts[len(compiled) :])
    assert trainer.loss.isfinite()


@pytest.mark.slow
def test_the_compiled_forward_is_put_back_at_the_end(train: Train, compiler: Compiler) -> None:
    trainer = train(**{**ARGUMENTS, "epochs": 1})
    before = compiler.calls
    trainer.model.train()(torch.zeros(2, 3, 32, 32, device=trainer.device))
    assert compiler.calls > before


@pytest.mark.slow
def test_an_odd_batch_is_the_only_one_that_is_eager_after_the_choice(
    train: Train, compiler: Compiler, slow_eager: None
) -> None:
    calls: list[int] = []

    def begin(trainer: Any) -> None:
        calls.append(compiler.calls)
        if len(calls) == 22:  # after the choice
            trainer.model(torch.zeros(1, 3, 64, 32, device=trainer.device))

    train(callbacks={"on_train_batch_start": begin}, **ARGUMENTS)
    per_step = [after - before for before, after in itertools.pairwise(calls)]
    assert all(per_step[22:])


def test_several_gpus_are_not_compared() -> None:
    trainer = SimpleNamespace(xpu=SimpleNamespace(world_size=2), args=SimpleNamespace())
    assert comparing._not_compared(trainer) == "several GPUs"
