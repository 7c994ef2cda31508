"""A policy that fails in a way nobody foresaw is switched off, and the run goes on; never where users' code fails."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import policies
from yolo_xpu_trainer.patches import Patch, like
from yolo_xpu_trainer.plugins import built_in, manager
from yolo_xpu_trainer.policies import foreground
from yolo_xpu_trainer.recovery import Recovery

from ..conftest import Train


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
        if isinstance(value, Patch)
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
    if patch in of_process:
        pytest.skip("see the next test")
    monkeypatch.setattr(module, name, broke)
    trainer = train(**arguments)
    assert trainer.device == xpu
    assert trainer.last.exists()
    warned = warnings_of(log)
    assert len(warned) <= 1
    assert all(f"the policy {policy!r} failed" in warning for warning in warned)
    called = policy not in ("amp_check", "autobatch") and name != "distilled_forward"
    assert bool(warned) is called


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
    monkeypatch.setattr(foreground, "_positions", broken("foreground"))

    def losses(**arguments: Any) -> list[float]:
        seen: list[float] = []
        train(callbacks={"on_train_batch_end": lambda t: seen.append(t.loss.item())}, amp=False, **arguments)
        return seen

    found = losses()
    (warning,) = warnings_of(log)
    assert "the policy 'foreground' failed" in warning
    monkeypatch.undo()
    assert found == losses(xpu_foreground_once=False)


def test_strict_raises_instead(xpu: torch.device, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreground, "_positions", broken("foreground"))
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
