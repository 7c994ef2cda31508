"""A policy that fails in a way nobody foresaw is switched off, and the run goes on; never where users' code fails."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import policies
from yolo_xpu_trainer.patches import Patch, like
from yolo_xpu_trainer.plugins import built_in, manager
from yolo_xpu_trainer.policies import foreground
from yolo_xpu_trainer.policies.foreground import mask as masks
from yolo_xpu_trainer.recovery import Recovery

from ..conftest import Train
from ..training import trainer_of

pytestmark = pytest.mark.slow


class ForcedError(Exception):
    """What a policy raises here."""


def broken(policy: str) -> Callable[..., Any]:
    """Return a function whose frame is a policy's own, and which raises."""
    module = importlib.import_module(f"{policies.__name__}.{policy}")
    namespace: dict[str, Any] = {"__name__": module.__name__, "ForcedError": ForcedError}
    exec("def broken(*args, **kwargs):\n    raise ForcedError('forced')", namespace)
    return namespace["broken"]  # type: ignore[no-any-return]


def warnings_of(log: list[logging.LogRecord]) -> list[str]:
    return [text for record in log if "is switched off" in (text := record.getMessage())]


def policies_with(hook: str) -> list[str]:
    return [i.plugin_name for i in getattr(manager().hook, hook).get_hookimpls() if i.plugin_name in built_in()]


HOOKS = (
    "xpu_configure",
    "xpu_report",
    "xpu_patches",
    "xpu_prepare_model",
    "xpu_prepare_optimizer",
    "xpu_after_setup",
    "xpu_wrap_dataloader",
    "xpu_move_batch",
    "xpu_arrange_batch",
    "xpu_around_run",
    "xpu_around_save",
    "xpu_checkpoint",
    "xpu_around_validation",
)


@pytest.mark.parametrize(
    ("hook", "policy"), [(hook, policy) for hook in HOOKS for policy in policies_with(hook)], ids=str
)
def test_a_run_goes_on_without_a_policy_whose_hook_fails(
    xpu: torch.device,
    train: Train,
    log: list[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
    empty_figures: None,
    hook: str,
    policy: str,
) -> None:
    caller = getattr(manager().hook, hook)
    (implementation,) = [i for i in caller.get_hookimpls() if i.plugin_name == policy]
    failing = broken(policy)
    if implementation.hookwrapper or implementation.wrapper:  # a generator, which pluggy starts
        name = implementation.function.__name__
        namespace = dict(vars(importlib.import_module(f"{policies.__name__}.{policy}")))
        exec(f"def {name}(*args):\n    raise RuntimeError('forced')\n    yield", namespace)
        failing = namespace[name]
    monkeypatch.setattr(implementation, "function", failing)
    amp = {"amp": False} if policy == "amp_check" else {}  # Ultralytics' own check downloads a model
    trainer = train(**amp)
    assert trainer.device == xpu
    assert trainer.last.exists()
    (warning,) = warnings_of(log)
    assert f"the policy {policy!r} failed" in warning
    assert "forced" in warning
    assert "/issues" in warning


def patches_of_runs() -> list[tuple[str, str]]:
    """Return every patch that stands in a policy's file by name, as the policy and the name."""
    return [
        (policy, name)
        for policy in built_in()
        for name, value in vars(importlib.import_module(f"{policies.__name__}.{policy}")).items()
        if isinstance(value, Patch) and name != "_BOX_METRICS"  # of which the one step that may fail is guarded within
    ]


@pytest.mark.parametrize(("policy", "name"), patches_of_runs())
def test_a_run_goes_on_without_a_policy_whose_replacement_fails(
    xpu: torch.device,
    train: Train,
    log: list[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
    empty_figures: None,
    policy: str,
    name: str,
) -> None:
    module = importlib.import_module(f"{policies.__name__}.{policy}")
    failing = broken(policy)
    of_process = getattr(module, "PATCHES", [])
    patch = getattr(module, name)
    broke = dataclasses.replace(patch, replacement=lambda run, original: failing)
    if name == "torch_of_losses":  # a stand-in for a module
        broke = dataclasses.replace(patch, replacement=lambda run, original: like(original, cat=failing))
    arguments: dict[str, Any] = {}
    if policy == "amp_check":
        arguments["amp"] = False  # Ultralytics' own check downloads a model
    if policy == "exact_resume":
        arguments["xpu_exact_resume"] = True
    if patch in of_process:
        pytest.skip("see the next test")
    monkeypatch.setattr(module, name, broke)
    trainer = train(**arguments)
    assert trainer.device == xpu
    assert trainer.last.exists()
    warned = warnings_of(log)
    assert len(warned) <= 1
    assert all(f"the policy {policy!r} failed" in warning for warning in warned)
    of_other_models = ("distilled_forward", "max_of_losses", "pair_overlaps", "calculate_rle_loss")
    called = (
        policy not in ("amp_check", "autobatch", "gradients", "ranks")
        and name not in of_other_models
        and patch.is_needed()
    )
    assert bool(warned) is called


def load_its_own_state(trainer: Any) -> None:
    trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())


FUSED = {"optimizer": "AdamW"}
COPIED_AHEAD = {"workers": 2}
UNFUSED = {"xpu_fused_optimizer": False}
NOT_AHEAD = {"xpu_prefetch": 0}
NCHW = {"xpu_channels_last": False}


# What fails, with arguments of the run, and what makes the run equal to one in which nothing fails; None where the
# policy has worked by then.
@pytest.mark.parametrize(
    ("place", "arguments", "without"),
    [
        ("memory:_start_epoch", {}, {}),
        ("progress:_shown", {}, {}),
        ("progress:_note", {}, {}),
        ("progress:Readings.of", {}, {}),
        ("prefetch:_release", COPIED_AHEAD, NOT_AHEAD),
        ("prefetch:LookAhead._begin", COPIED_AHEAD, NOT_AHEAD),
        ("prefetch:tree_leaves", COPIED_AHEAD, NOT_AHEAD),  # where a step waits for the copies
        ("optimizer:_check_step", FUSED, UNFUSED),
        ("optimizer:_omit_fused", FUSED, None),
        ("optimizer:_stay_fused", {**FUSED, "callbacks": {"on_train_start": load_its_own_state}}, UNFUSED),
        ("channels_last:_look", {}, NCHW),
        ("channels_last.optimizers:in_nchw", {}, None),
        ("channels_last.optimizers:follow_the_weights", {"callbacks": {"on_train_start": load_its_own_state}}, NCHW),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # a function's name has its address
)
def test_a_run_goes_on_without_a_policy_whose_callback_or_hook_or_attribute_fails(
    xpu: torch.device,
    train: Train,
    log: list[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
    empty_figures: None,
    place: str,
    arguments: dict[str, Any],
    without: dict[str, Any] | None,
) -> None:
    module, _, name = place.partition(":")
    *owners, name = name.split(".")
    policy = module.partition(".")[0]
    owner = attrgetter(".".join(owners))(imported(module)) if owners else imported(module)
    monkeypatch.setattr(owner, name, broken(policy))
    found = losses(train, **arguments)
    (warning,) = warnings_of(log)
    assert f"the policy {policy!r} failed" in warning
    monkeypatch.undo()
    if without is not None:
        assert found == losses(train, **{**arguments, **without})


def imported(name: str) -> Any:
    return importlib.import_module(f"{policies.__name__}.{name}")


def losses(train: Train, callbacks: dict[str, Any] | None = None, **arguments: Any) -> list[float]:
    """Train two batches; return each one's loss."""
    seen: list[float] = []
    callbacks = {"on_train_batch_end": lambda trainer: seen.append(trainer.loss.item()), **(callbacks or {})}
    trainer = train(**{"batch": 2, "imgsz": 64, "amp": False, "callbacks": callbacks, **arguments})
    assert trainer.last.exists()
    return seen


def test_a_run_goes_on_in_nchw_where_an_optimizers_first_step_can_not_be_looked_at(
    xpu: torch.device, train: Train, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = imported("channels_last")

    def fail(trainer: Any) -> None:
        monkeypatch.setattr(module, "try_optimizer", broken("channels_last"))

    def note(trainer: Any) -> None:
        wanted.append(layout.of(trainer).wanted)

    wanted: list[bool] = []
    layout = imported("channels_last.layout")
    losses(train, callbacks={"on_train_start": fail, "on_train_epoch_end": note})
    assert wanted == [False]
    assert len(warnings_of(log)) == 1


class Mine(torch.nn.SiLU):
    """A user's module."""


def test_a_run_goes_on_in_nchw_where_the_trial_of_users_modules_fails(
    xpu: torch.device, train: Train, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    class MyTrainer(trainer_of("detect")):  # type: ignore[misc]
        def get_model(self, *args: Any, **kwargs: Any) -> Any:
            model = super().get_model(*args, **kwargs)
            model.model[0].act = Mine()
            return model

    monkeypatch.setattr(imported("channels_last.trial"), "_problem", broken("channels_last"))
    found = losses(train, trainer=MyTrainer)
    assert len(warnings_of(log)) == 1
    monkeypatch.undo()
    assert found == losses(train, trainer=MyTrainer, **NCHW)


def test_a_replacement_that_worked_once_is_not_forgiven_later(xpu: torch.device) -> None:
    recovery = Recovery(strict=lambda: False)
    failing = broken("foreground")
    fails = False

    def replacement() -> str:
        return failing() if fails else "ours"  # type: ignore[no-any-return]

    guarded = recovery.guard(foreground.forward, replacement, lambda: "theirs", lambda: "theirs")
    assert guarded() == "ours"
    fails = True
    with pytest.raises(ForcedError):
        guarded()
    with torch.no_grad():  # a validation is another matter
        assert guarded() == "theirs"
    assert guarded() == "theirs"


def test_a_failure_within_the_loss_starts_the_batch_again(
    xpu: torch.device, train: Train, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame that fails is called by Ultralytics' loss, which no patch of the policy surrounds."""
    monkeypatch.setattr(masks, "_positions", broken("foreground"))

    found = losses(train)
    (warning,) = warnings_of(log)
    assert "the policy 'foreground' failed" in warning
    monkeypatch.undo()
    assert found == losses(train, xpu_foreground_once=False)


def test_strict_raises_instead(xpu: torch.device, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_positions", broken("foreground"))
    with pytest.raises(ForcedError):
        train(xpu_strict=True)


@pytest.mark.parametrize(
    "text", ["XPU out of memory. Tried to allocate", "UR error", "UR_RESULT_ERROR_DEVICE_LOST"], ids=str
)
def test_errors_of_the_device_and_of_memory_are_left_to_others(text: str) -> None:
    recovery = Recovery(strict=lambda: False)
    namespace: dict[str, Any] = {"__name__": f"{policies.__name__}.nms", "text": text}
    exec("def broken():\n    raise RuntimeError(text)", namespace)
    with pytest.raises(RuntimeError) as caught:
        namespace["broken"]()
    assert not recovery.gives_up(caught.value)
    assert not recovery.off


def test_an_error_in_users_code_is_theirs(xpu: torch.device, train: Train, log: list[logging.LogRecord]) -> None:
    from yolo_xpu_trainer import XPUDetectionTrainer

    class MyTrainer(XPUDetectionTrainer):
        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(trainer=MyTrainer)
    assert not warnings_of(log)


def test_the_precision_falls_back_to_fp32(
    xpu: torch.device, train: Train, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolo_xpu_trainer.policies import precision

    failing = broken("precision")
    monkeypatch.setattr(
        precision, "autocast", dataclasses.replace(precision.autocast, replacement=lambda run, original: failing)
    )
    dtypes: set[torch.dtype] = set()

    def look(trainer: Any) -> None:
        layer = trainer.model.model[0]
        layer.register_forward_hook(lambda m, i, output: dtypes.add(output.dtype) if m.training else None)

    trainer = train(callbacks={"on_train_start": look}, amp="bf16")
    assert trainer.xpu.precision.name == "fp32"
    assert dtypes == {torch.float32}
    assert warnings_of(log)
