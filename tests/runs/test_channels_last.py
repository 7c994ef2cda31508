"""channels_last: the model, its batches and its average, in every mode; nothing of it in a checkpoint."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolo_xpu_trainer.policies import channels_last

from ..conftest import Train, TrainingData

by_default = channels_last._by_default


@pytest.fixture(autouse=True)
def _default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let channels_last be the default, as it is since PyTorch 2.7."""
    monkeypatch.setattr(channels_last, "_by_default", lambda: True)


def in_channels_last(tensor: torch.Tensor) -> bool:
    """Whether a tensor is laid out in channels_last and not also in NCHW."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def spatial(tensors: Any) -> list[torch.Tensor]:
    """Return the weights for which the two layouts differ."""
    return [t for t in tensors if t.dim() == 4 and t.shape[1] > 1 and t.shape[2] > 1]


def look(train: Train, event: str, see: Any, **arguments: Any) -> Any:
    """Train without validating, and return what was seen at an event the first time."""
    seen: list[Any] = []
    train(callbacks={event: lambda trainer: seen.append(see(trainer))}, **{"imgsz": 64, "val": False, **arguments})
    return seen[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, True),
        ({"xpu_channels_last": False}, False),
        ({"channels_last": False}, False),
        ({"channels_last": True}, True),
    ],
    ids=str,
)
def test_model_average_and_optimizer_are_laid_out_as_asked(
    xpu: Any, train: Train, log: list[logging.LogRecord], arguments: dict[str, bool], expected: bool
) -> None:
    def layouts(trainer: Any) -> set[bool]:
        state = [s["momentum_buffer"] for s in trainer.optimizer.state.values()]
        tensors = [*trainer.model.parameters(), *trainer.ema.ema.parameters(), *state]
        return {in_channels_last(tensor) for tensor in spatial(tensors)}

    assert look(train, "on_train_epoch_end", layouts, optimizer="SGD", **arguments) == {expected}
    said = [record.getMessage() for record in log]
    assert any(("channels_last memory format" if expected else "NCHW memory format") in text for text in said)
    assert not any("only supported on CUDA" in text for text in said)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_reach_the_model_laid_out_as_it_is(xpu: Any, train: Train, channels_last: bool) -> None:
    seen: set[tuple[bool, torch.dtype]] = set()

    def look(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3 and module.training:
            seen.add((in_channels_last(inputs[0]), inputs[0].dtype))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    train(imgsz=128, val=False, xpu_channels_last=channels_last, multi_scale=0.5)
    hook.remove()
    assert seen == {(channels_last, torch.float32)}


@pytest.mark.parametrize("host_save", [True, False])
def test_a_checkpoint_is_laid_out_as_ultralytics_does_and_resumes_in_channels_last(
    xpu: Any, train: Train, host_save: bool
) -> None:
    class StopError(Exception):
        pass

    def stop(trainer: Any) -> None:
        checkpoint = torch.load(trainer.last, map_location="cpu", weights_only=False)
        state = [s["exp_avg"] for s in checkpoint["optimizer"]["state"].values()]
        assert all(tensor.is_contiguous() for tensor in [*checkpoint["ema"].parameters(), *state])
        assert {group["fused"] for group in checkpoint["optimizer"]["param_groups"]} == {None}
        saved.append(str(trainer.last))
        raise StopError

    def resumed(trainer: Any) -> None:
        states = list(trainer.optimizer.state.items())
        assert states
        assert all(s["exp_avg"].stride() == p.stride() for p, s in states)
        assert {group["fused"] for group in trainer.optimizer.param_groups} == {True}
        assert {in_channels_last(p) for p in spatial(trainer.model.parameters())} == {True}

    saved: list[str] = []
    with pytest.raises(StopError):
        look(train, "on_model_save", stop, epochs=2, optimizer="AdamW", xpu_host_save=host_save)
    look(train, "on_train_start", resumed, model=saved[0], resume=True)


@pytest.mark.parametrize("mode", ["predict", "val"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, True), ({"xpu_channels_last": False}, False), ({"channels_last": False}, False)],
    ids=str,
)
def test_prediction_and_validation_work_in_channels_last(
    xpu: Any, data: TrainingData, mode: str, arguments: dict[str, bool], expected: bool, monkeypatch: Any
) -> None:
    import numpy as np
    from ultralytics import YOLO
    from ultralytics.nn.autobackend import AutoBackend

    backends: list[Any] = []
    warmup = AutoBackend.warmup

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        backends.append(self)
        return warmup(self, *args, **kwargs)

    monkeypatch.setattr(AutoBackend, "warmup", remember)
    model = YOLO("yolo11n.yaml")
    if mode == "val":
        model.val(data=data("detect"), imgsz=64, device="xpu:0", plots=False, **arguments)
    else:
        model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, device="xpu:0", verbose=False, **arguments)
    weights = spatial(backends[0].backend.model.parameters())
    assert weights[0].device.type == "xpu"
    assert {in_channels_last(weight) for weight in weights} == {expected}


def test_an_optimizer_that_cant_makes_the_run_go_on_in_nchw(
    xpu: Any, train: Train, log: list[logging.LogRecord], monkeypatch: Any
) -> None:
    from ultralytics.optim import muon

    def flattens(grad: torch.Tensor, momentum: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return grad.view(len(grad), -1)  # as MuSGD did up to 8.4.130 or so

    with monkeypatch.context() as patch:

        def layouts(trainer: Any) -> set[bool]:
            patch.undo()
            return {in_channels_last(w) for w in spatial([*trainer.model.parameters(), *trainer.ema.ema.parameters()])}

        patch.setattr(muon, "muon_update", flattens)
        assert look(train, "on_pretrain_routine_end", layouts, optimizer="MuSGD", xpu_plugins="-musgd") == {False}
    assert any("MuSGD can't work in channels_last" in record.getMessage() for record in log)


# Feature maps of one pixel, for which channels_last was seen to give wrong gradients (torch-xpu-ops#4756)


@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        ("classify", {"imgsz": 32, "batch": 3}, False),
        ("classify", {"imgsz": 64}, True),
        ("detect", {"imgsz": 32}, False),
        ("detect", {"imgsz": 40}, True),  # which Ultralytics makes 64
        ("detect", {"imgsz": 64, "multi_scale": 0.5}, False),
        ("detect", {"imgsz": 128, "multi_scale": 0.5}, True),
    ],
)
def test_a_run_whose_deepest_maps_have_one_pixel_is_trained_in_nchw(
    xpu: Any, train: Train, log: list[logging.LogRecord], task: str, arguments: dict[str, Any], expected: bool
) -> None:
    def layouts(trainer: Any) -> set[bool]:
        return {in_channels_last(w) for w in spatial([*trainer.model.parameters(), *trainer.ema.ema.parameters()])}

    assert look(train, "on_train_start", layouts, task=task, **arguments) == {expected}
    said = [record for record in log if "feature maps of one" in record.getMessage()]
    assert len(said) == (0 if expected else 1)


def test_its_losses_are_then_those_of_nchw(xpu: Any, train: Train) -> None:
    def losses(**arguments: Any) -> list[float]:
        seen: list[float] = []
        note = {"on_train_batch_end": lambda trainer: seen.append(float(trainer.loss))}
        train("classify", callbacks=note, imgsz=32, batch=3, amp=False, val=False, **arguments)
        return seen

    assert losses() == losses(xpu_channels_last=False)


@pytest.mark.parametrize(
    ("stride", "imgsz", "multi_scale", "smallest"),
    [
        ([8, 16, 32], 32, 0.0, 32),
        ([8, 16, 32], 64, 0, 0),
        ([8, 16, 32], 64, True, 32),
        ([8, 16, 32], 640, True, 0),
        ([8, 16, 32], [96], 0.9, 32),
        ([8, 16, 32, 64], 64, None, 64),
        ([1], 28, 0.0, 32),
    ],
)
def test_the_smallest_images_are_those_of_multi_scale(
    stride: list[int], imgsz: Any, multi_scale: Any, smallest: int
) -> None:
    args = SimpleNamespace(imgsz=imgsz, multi_scale=multi_scale)
    trainer = SimpleNamespace(model=SimpleNamespace(stride=torch.tensor(stride)), args=args)
    assert channels_last._smallest_sides(trainer) == smallest


# PyTorch before 2.7


@pytest.mark.parametrize(("version", "expected"), [("2.5.1", False), ("2.6.0+xpu", False), ("2.7.0", True)])
def test_it_is_the_default_from_pytorch_2_7_on(version: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert by_default() is expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, False), ({"xpu_channels_last": True}, True), ({"channels_last": True}, True)],
    ids=str,
)
def test_before_it_takes_asking(
    xpu: Any,
    train: Train,
    log: list[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, bool],
    expected: bool,
) -> None:
    monkeypatch.setattr(channels_last, "_by_default", lambda: False)

    def layouts(trainer: Any) -> set[bool]:
        return {in_channels_last(w) for w in spatial(trainer.model.parameters())}

    assert look(train, "on_train_start", layouts, **arguments) == {expected}
    told = "channels_last memory format" if expected else f"NCHW memory format on PyTorch {torch.__version__}"
    assert any(told in record.getMessage() for record in log)


@pytest.mark.parametrize(("arguments", "expected"), [({}, False), ({"xpu_channels_last": True}, True)], ids=str)
def test_before_it_takes_asking_in_prediction_as_well(
    xpu: Any, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, bool], expected: bool
) -> None:
    import numpy as np
    from ultralytics import YOLO

    monkeypatch.setattr(channels_last, "_by_default", lambda: False)
    model = YOLO("yolo11n.yaml")
    model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, device="xpu:0", verbose=False, **arguments)
    weights = spatial(model.predictor.model.backend.model.parameters())
    assert {in_channels_last(weight) for weight in weights} == {expected}
