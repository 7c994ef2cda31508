"""Users' modules, losses and hooks, beside plain Ultralytics on the same device: none is broken by channels_last."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ..conftest import Train
from ..training import trainer_of
from . import own_layouts as own
from .test_channels_last import in_channels_last, spatial

AS_PLAIN = {"optimizer": "AdamW", "amp": False, "seed": 1}
REASON = "training in NCHW, which is slower, because"
pytestmark = pytest.mark.usefixtures("channels_last_by_default")


def with_model(change: Callable[[Any], Any], plain: bool) -> type:
    """Return a trainer that changes the model it makes."""

    class Theirs(trainer_of("detect", plain)):  # type: ignore[misc]
        def get_model(self, *args: Any, **kwargs: Any) -> Any:
            model = super().get_model(*args, **kwargs)
            torch.manual_seed(3)
            return change(model) or model

    return Theirs


def around_first(kind: type) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.model[0] = kind(model.model[0])

    return change


def losses(train: Train, change: Callable[[Any], Any], plain: bool = False, **arguments: Any) -> tuple[Any, Any]:
    """Train; return each batch's loss, and the trainer."""
    seen: list[float] = []
    callbacks = {
        "on_train_batch_end": lambda trainer: seen.append(float(trainer.loss.detach())),
        **arguments.pop("callbacks", {}),
    }
    if not plain:
        arguments.setdefault("xpu_fused_optimizer", False)
    trainer = train(
        trainer=with_model(change, plain),
        plain=plain,
        device="xpu:0",
        callbacks=callbacks,
        **{"imgsz": 64, **AS_PLAIN, **arguments},
    )
    return seen, trainer


def said(log: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage().partition(REASON)[2] for record in log if REASON in record.getMessage()]


def layouts(trainer: Any) -> set[bool]:
    """Return whether convolutions of the model and of its average are in channels_last."""
    weights = [
        module.weight
        for model in (trainer.model, trainer.ema.ema)
        for module in model.modules()
        if type(module) in (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    ]
    return {in_channels_last(weight) for weight in spatial(weights)}


@pytest.mark.parametrize(
    "kind",
    [
        own.FlattenAndLinear,
        own.ParameterView,
        own.PositionalEmbedding,
        own.Shuffle,
        own.OwnStrides,
        own.HasOwnConv,
        own.UpAndDown,
    ],
)
def test_a_module_that_works_in_either_layout_is_trained_in_channels_last(
    train: Train, log: list[logging.LogRecord], kind: type
) -> None:
    expected, _ = losses(train, around_first(kind), plain=True, imgsz=64)
    found, trainer = losses(train, around_first(kind), imgsz=64)
    assert found == pytest.approx(expected, rel=1e-3)
    assert layouts(trainer) == {True}
    assert not said(log)
    own_weights = [p for n, p in trainer.model.named_parameters() if n.split(".")[-1] in ("kernels", "position")]
    own_weights += [m.weight for m in trainer.model.modules() if isinstance(m, own.OwnConv)]
    assert all(weight.is_contiguous() for weight in own_weights)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (own.ViewAfterPooling, "ViewAfterPooling.change can't work in channels_last: view size is not compatible"),
        (own.AssertsContiguous, "AssertsContiguous.change can't work in channels_last: a kernel of mine"),
        (own.CountsOnStrides, "CountsOnStrides.change can't work in channels_last: strides"),
        (own.OrderInMemory, "the model computes something else in channels_last"),
        (own.FunctionWithView, "can't work in channels_last: view size is not compatible"),
        (own.FunctionWithViewBackward, "can't work in channels_last: view size is not compatible"),
        (own.FunctionWithOtherGradient, "the model computes something else in channels_last: the gradient of"),
        (own.ViewInValidation, "ViewInValidation.change can't work in channels_last: view size"),
        (own.RememberingViews, "RememberingViews.change can't work in channels_last: view size"),
    ],
)
def test_a_module_that_needs_nchw_gets_it_and_learns_as_in_plain_ultralytics(
    train: Train, log: list[logging.LogRecord], kind: type, reason: str
) -> None:
    expected, _ = losses(train, around_first(kind), plain=True, imgsz=64)
    found, trainer = losses(train, around_first(kind), imgsz=64)
    assert found == expected
    assert layouts(trainer) == {False}
    assert len(said(log)) == 1
    assert reason in said(log)[0]


@pytest.mark.parametrize(("kind", "expected"), [(own.Remembers, True), (own.RememberingViews, False)])
def test_what_a_module_keeps_is_as_if_it_had_not_been_tried(train: Train, kind: type, expected: bool) -> None:
    def kept(trainer: Any) -> tuple[Any, ...]:
        module = trainer.model.model[0]
        return module.calls, len(module.seen), float(module.steps), module.seen[0]

    _, plain = losses(train, around_first(kind), plain=True)
    _, ours = losses(train, around_first(kind))
    assert layouts(ours) == {expected}
    assert kept(ours) == pytest.approx(kept(plain), rel=1e-3)
    assert kept(ours)[:3] == (2, 2, 2)
    assert float(ours.model.model[0].scale) == pytest.approx(float(plain.model.model[0].scale), abs=0.05)


def test_a_loss_that_views_features_is_computed_in_nchw(train: Train, log: list[logging.LogRecord]) -> None:
    def change(model: Any) -> None:
        model.__class__ = own.OwnLoss

    expected, _ = losses(train, change, plain=True)
    assert losses(train, change)[0] == expected
    assert "OwnLoss.loss" in said(log)[0]


@pytest.mark.slow
@pytest.mark.parametrize("event", ["on_pretrain_routine_end", "on_train_start", "on_train_epoch_start"])
def test_a_hook_is_tried_whenever_it_came(train: Train, log: list[logging.LogRecord], event: str) -> None:
    sizes: list[int] = []

    def hang(trainer: Any) -> None:
        trainer.model.model[2].register_forward_hook(look)

    def look(module: Any, args: Any, out: torch.Tensor) -> None:
        sizes.append(out.view(len(out), -1).shape[1])

    def nothing(model: Any) -> None:
        pass

    expected, _ = losses(train, nothing, plain=True, callbacks={event: hang})
    found, trainer = losses(train, nothing, callbacks={event: hang})
    assert found == expected
    assert layouts(trainer) == {False}
    assert "look can't work in channels_last" in said(log)[0]


def test_a_hook_of_the_second_epoch_is_tried_and_the_average_goes_on(
    train: Train, log: list[logging.LogRecord]
) -> None:
    averages: list[float] = []

    def averaged(trainer: Any) -> None:
        averages.append(float(next(trainer.ema.ema.parameters()).sum()))

    def look(module: Any, args: Any, out: torch.Tensor) -> None:
        out.view(len(out), -1)

    def hang(trainer: Any) -> None:
        if trainer.epoch == 1:
            trainer.model.model[2].register_forward_hook(look)

    callbacks = {"on_train_epoch_start": hang, "on_train_epoch_end": averaged}
    _, trainer = losses(train, lambda model: None, epochs=2, callbacks=callbacks, xpu_fused_optimizer=True)
    assert layouts(trainer) == {False}
    assert said(log)
    assert averages[0] != averages[1]


@pytest.mark.slow
@pytest.mark.parametrize("place", [own.in_a_closure, own.in_an_object, own.in_a_global, own.behind_a_function])
def test_what_a_hook_collects_is_as_if_it_had_not_been_tried(
    train: Train, place: Callable[[], tuple[Any, list[torch.Tensor]]]
) -> None:
    hook, collected = place()
    counts: list[int] = []

    def hang(trainer: Any) -> None:
        trainer.model.model[2].register_forward_hook(hook)

    def count(trainer: Any) -> None:
        counts.append(len(collected))
        collected.clear()

    callbacks = {"on_train_start": hang, "on_train_batch_end": count}
    _, trainer = losses(train, lambda model: None, callbacks=callbacks)
    collected.clear()
    assert layouts(trainer) == {True}
    assert counts == [1, 1]


def view_of(layer: Any, x: torch.Tensor) -> torch.Tensor:
    out = type(layer).forward(layer, x)
    return out.view(len(out), -1).view(out.shape)


def test_a_forward_that_is_replaced_on_an_instance_is_tried(train: Train, log: list[logging.LogRecord]) -> None:
    def change(model: Any) -> None:
        model.model[2].forward = functools.partial(view_of, model.model[2])

    expected, _ = losses(train, change, plain=True)
    found, trainer = losses(train, change)
    assert found == expected
    assert layouts(trainer) == {False}
    assert "view_of can't work in channels_last" in said(log)[0]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", [own.ViewAfterPooling, own.RememberingViews])
def test_a_trial_leaves_no_trace_in_a_run_of_mixed_precision(train: Train, kind: type, amp: str) -> None:
    expected, untried = losses(train, around_first(kind), amp=amp, xpu_channels_last=False)
    found, trainer = losses(train, around_first(kind), amp=amp)
    assert found == expected
    assert layouts(trainer) == layouts(untried) == {False}
    weights = zip(trainer.model.state_dict().values(), untried.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.slow
def test_a_compiled_model_with_own_code_is_trained_in_nchw(train: Train, log: list[logging.LogRecord]) -> None:
    def switch(trainer: Any) -> None:
        trainer.args.compile = True  # the loop's part of it, without a compiler

    callbacks = {"on_train_start": switch}
    expected, _ = losses(train, around_first(own.Shuffle), plain=True, callbacks=callbacks)
    found, trainer = losses(train, around_first(own.Shuffle), callbacks=callbacks)
    assert found == expected
    assert layouts(trainer) == {False}
    assert "code of its own (Shuffle), which can't be tried in a compiled model" in said(log)[0]


@pytest.mark.slow
def test_a_resumed_run_with_own_code_goes_on_in_the_layout_that_it_had(train: Train) -> None:
    class StopError(Exception):
        pass

    def stop(trainer: Any) -> None:
        saved.append(str(trainer.last))
        raise StopError

    def state(trainer: Any) -> None:
        states = list(trainer.optimizer.state.items())
        aligned.append(bool(states) and all(s["exp_avg"].stride() == p.stride() for p, s in states))

    saved: list[str] = []
    aligned: list[bool] = []
    with pytest.raises(StopError):
        losses(train, around_first(own.Shuffle), epochs=2, callbacks={"on_model_save": stop})
    trainer = train(
        trainer=with_model(around_first(own.Shuffle), plain=False),
        model=saved[0],
        resume=True,
        imgsz=64,
        callbacks={"on_train_batch_end": state},
    )
    assert layouts(trainer) == {True}
    assert all(aligned)


def test_memory_that_runs_out_in_the_trial_costs_the_layout_not_the_run(
    train: Train, log: list[logging.LogRecord], monkeypatch: Any
) -> None:
    from yolo_xpu_trainer.policies.channels_last import trial

    compute = trial._compute

    def too_large(model: Any, batch: Any, memory_format: torch.memory_format) -> Any:
        compute(model, batch, memory_format)
        torch.empty(1 << 50, dtype=torch.uint8, device="xpu")

    monkeypatch.setattr(trial, "_compute", too_large)
    expected, _ = losses(train, around_first(own.FlattenAndLinear), plain=True)
    found, trainer = losses(train, around_first(own.FlattenAndLinear))
    assert found == expected
    assert layouts(trainer) == {False}
    assert "not enough memory" in said(log)[0]
    assert trainer.batch_size == 4


def test_a_lost_device_is_not_taken_for_a_layout(train: Train, monkeypatch: Any) -> None:
    from yolo_xpu_trainer.policies.channels_last import trial

    def lost(*args: Any) -> Any:
        raise RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)")

    monkeypatch.setattr(trial, "_compute", lost)
    with pytest.raises(RuntimeError, match="DEVICE_LOST"):
        losses(train, around_first(own.FlattenAndLinear))


def test_a_copy_of_a_model_that_is_yet_to_be_tried_has_no_trial(train: Train) -> None:
    copies: list[Any] = []

    def take(trainer: Any) -> None:
        if not copies:
            copies.append(copy.deepcopy(trainer.model))

    _, trainer = losses(train, around_first(own.Shuffle), callbacks={"on_train_batch_start": take})
    assert layouts(trainer) == {True}
    copies[0].eval()(torch.zeros(1, 3, 32, 32, device="xpu"))


def test_users_preprocessing_gets_images_in_nchw(train: Train) -> None:
    from yolo_xpu_trainer import XPUDetectionTrainer

    brightness: list[int] = []

    class Theirs(XPUDetectionTrainer):
        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch = super().preprocess_batch(batch)
            brightness.append(len(batch["img"].view(len(batch["img"]), -1).mean(1)))
            return batch

    trainer = train(trainer=Theirs, imgsz=64)
    assert brightness
    assert layouts(trainer) == {True}


def test_a_model_that_replaces_the_trained_one_is_laid_out_too(train: Train) -> None:
    def replace(trainer: Any) -> None:
        trainer.model = copy.deepcopy(trainer.model).to(memory_format=torch.contiguous_format)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.01)
        for group in trainer.optimizer.param_groups:
            group["initial_lr"] = 0.01

    _, trainer = losses(train, lambda model: None, callbacks={"on_train_start": replace})
    assert layouts(trainer) == {True}


@pytest.mark.parametrize("mode", ["predict", "val"])
def test_backends_keep_models_with_users_code_in_nchw(train: Train, data: Any, mode: str) -> None:
    import numpy as np
    from ultralytics import YOLO

    model = YOLO("yolo11n.yaml")
    around_first(own.ViewInValidation)(model.model)
    if mode == "val":
        model.val(data=data("detect"), imgsz=32, device="xpu:0", plots=False)
    else:
        model.predict(np.zeros((32, 32, 3), np.uint8), imgsz=32, device="xpu:0", verbose=False)
