"""An XPU computes what a CPU computes, in the precision that was asked for, and what bf16 can hold stays finite."""

from __future__ import annotations

import math
import random
import socket
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import downloads

from yolo_xpu_trainer import XPUDetectionTrainer, devices
from yolo_xpu_trainer.patches import applied
from yolo_xpu_trainer.policies import amp_check, coordinates, grad_scaler
from yolo_xpu_trainer.run import Precision, Run

from ..conftest import TrainingData
from ..options import options

pytestmark = pytest.mark.slow


@dataclass
class Record:
    """What a training run computed.

    Attributes:
        losses: The loss and its parts, a batch each.
        metrics: Every epoch's metrics, validation losses among them; the final validation's at the end.
        weights: The final weights.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def total(self, batches: int) -> float:
        """Return the mean of the last batches' losses."""
        return float(np.mean([losses["loss"] for losses in self.losses[-batches:]]))


def _train(trainer_class: type, directory: Path, **arguments: Any) -> Record:
    """Train from scratch and note what was computed, in one thread: sums depend on how many share them."""
    trainer = trainer_class(
        overrides={
            "model": "yolo11n.yaml",
            "workers": 0,
            "plots": False,
            "project": str(directory),
            "name": "run",
            "exist_ok": True,
            **arguments,
        }
    )
    record = Record()

    def batch_end(trainer: Any) -> None:
        items = {"loss": trainer.loss, **trainer.loss_items}
        record.losses.append({name: value.detach().item() for name, value in items.items()})

    trainer.add_callback("on_train_batch_end", batch_end)
    trainer.add_callback("on_fit_epoch_end", lambda trainer: record.metrics.append(dict(trainer.metrics)))
    with pytest.MonkeyPatch.context() as patch:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        patch.setattr(torch, "set_num_threads", lambda n: None)  # Ultralytics sets its own number for a CPU
        trainer.train()
    torch.set_num_threads(threads)
    record.metrics.append(dict(trainer.metrics))
    record.weights = {k: v.detach().cpu().clone() for k, v in trainer.model.state_dict().items()}
    return record


def _difference(a: Record, b: Record) -> float:
    """Return the largest absolute difference between two runs' losses and metrics."""
    assert len(a.losses) == len(b.losses)
    assert len(a.metrics) == len(b.metrics)
    pairs = [*zip(a.losses, b.losses, strict=True), *zip(a.metrics, b.metrics, strict=True)]
    assert all(x.keys() == y.keys() for x, y in pairs)
    return max(abs(x[name] - y[name]) for x, y in pairs for name in x)


# Ultralytics' default augmentation, mosaic in the first two epochs: the random numbers are compared too.
_THREE_EPOCHS = {"epochs": 3, "imgsz": 64, "batch": 8, "nbs": 8, "close_mosaic": 1, "amp": False, "seed": 3}


# The policies that compute the same numbers in another order, switched off.
_SAME_ARITHMETIC = {"xpu_channels_last": False, "xpu_fused_optimizer": False}


@pytest.fixture(scope="module")
def plain_cpu(digits_data: str, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Train with Ultralytics' own trainer on the CPU."""
    return _train(DetectionTrainer, tmp_path_factory.mktemp("cpu"), data=digits_data, device="cpu", **_THREE_EPOCHS)


def test_fp32_on_an_xpu_gives_the_numbers_of_plain_ultralytics(
    xpu: torch.device, plain_cpu: Record, digits_data: str, tmp_path: Path
) -> None:
    record = _train(XPUDetectionTrainer, tmp_path, data=digits_data, device="xpu", **_SAME_ARITHMETIC, **_THREE_EPOCHS)
    assert len(record.losses) == 24
    difference = _difference(record, plain_cpu)
    assert difference == 0, f"losses and metrics differ by up to {difference:.3g}"


@pytest.mark.parametrize(
    ("policy", "first", "fourth"),
    [("xpu_channels_last", 1e-5, 1e-3), ("xpu_fused_optimizer", 0, 1e-4)],
)
def test_a_policy_that_sums_in_another_order_stays_near(
    xpu: torch.device, digits_data: str, tmp_path: Path, policy: str, first: float, fourth: float
) -> None:
    settings = {"data": digits_data, "device": "xpu", "optimizer": "AdamW", "val": False, **_THREE_EPOCHS}
    exact, near = (
        _train(XPUDetectionTrainer, tmp_path, **settings, **{**_SAME_ARITHMETIC, policy: on}) for on in (False, True)
    )
    deviation = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(near.losses, exact.losses, strict=True)]
    assert deviation[0] <= first
    assert max(deviation[:4]) <= fourth  # from there on two runs part, however small the first difference
    assert any(deviation)


def test_on_a_cpu_the_trainer_changes_nothing(plain_cpu: Record, digits_data: str, tmp_path: Path) -> None:
    record = _train(XPUDetectionTrainer, tmp_path, data=digits_data, device="cpu", **_THREE_EPOCHS)
    assert record.losses == plain_cpu.losses
    assert record.metrics == plain_cpu.metrics
    assert record.weights.keys() == plain_cpu.weights.keys()
    assert all(torch.equal(v, plain_cpu.weights[k]) for k, v in record.weights.items())


_ONE_EPOCH = {"epochs": 1, "imgsz": 64, "batch": 8, "nbs": 8, "warmup_epochs": 0, "val": False}
_LEARNING = {
    "imgsz": 96,
    "batch": 8,
    "nbs": 8,
    "optimizer": "AdamW",
    "warmup_epochs": 0,
    "mosaic": 0.0,
    "close_mosaic": 0,
    "val": False,
    "seed": 1,
}


@pytest.mark.xpu_hardware
@pytest.mark.usefixtures("xpu")
def test_bf16_learns_as_fp32_does(digits_data: str, tmp_path: Path) -> None:
    settings = {"data": digits_data, "device": "xpu", **_LEARNING}
    # From random weights any two runs part at once, however small the first difference.
    _train(XPUDetectionTrainer, tmp_path, amp="fp32", epochs=6, lr0=0.002, **settings)
    start = str((tmp_path / "run" / "weights" / "last.pt").rename(tmp_path / "start.pt"))
    fp32, bf16 = (
        _train(XPUDetectionTrainer, tmp_path, model=start, amp=precision, epochs=4, lr0=0.0003, **settings)
        for precision in ("fp32", "bf16")
    )
    assert len(fp32.losses) == len(bf16.losses) == 32
    assert fp32.total(5) < 0.97 * fp32.losses[0]["loss"], "nothing was learnt, so there is nothing to compare"
    assert bf16.losses[0] != fp32.losses[0]
    deviation = bf16.total(5) / fp32.total(5) - 1
    assert abs(deviation) < 0.02, f"bf16 ends {deviation:+.2%} from fp32"


class _WithTorchsScaler(XPUDetectionTrainer):
    """A trainer whose gradients PyTorch's own scaler scales."""

    def _setup_train(self, *args: Any) -> None:
        super()._setup_train(*args)
        assert type(self.scaler) is grad_scaler.GradScaler
        self.scaler = torch.amp.GradScaler("xpu")


def test_fp16_is_scaled_as_by_torchs_own_scaler(xpu: torch.device, digits_data: str, tmp_path: Path) -> None:
    arguments = {"data": digits_data, "device": "xpu", "amp": "fp16", **_ONE_EPOCH}
    ours = _train(XPUDetectionTrainer, tmp_path, **arguments)
    torchs = _train(_WithTorchsScaler, tmp_path, **arguments)
    assert len({losses["loss"] for losses in ours.losses}) == 8
    assert ours.losses == torchs.losses
    assert all(torch.equal(v, torchs.weights[k]) for k, v in ours.weights.items())


def _random_states(device: torch.device) -> list[Any]:
    return [
        random.getstate(),
        [np.asarray(part).tolist() for part in np.random.get_state()],
        torch.get_rng_state().tolist(),
        torch.xpu.get_rng_state(device).tolist(),
    ]


def _run(precision: str, requested: bool = False) -> Run:
    return Run(devices.info(0), (0,), Precision(precision, "the test says so", requested), options())


@pytest.mark.xpu_hardware
def test_checking_amp_draws_no_random_numbers(xpu: torch.device) -> None:
    model = YOLO("yolo11n.yaml").model.to(xpu)
    before = _random_states(xpu)
    assert amp_check.check(_run("bf16"), model)
    assert _random_states(xpu) == before


@pytest.mark.xpu_hardware
@pytest.mark.usefixtures("xpu")
def test_nothing_is_downloaded_to_check_amp(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[Any] = []
    monkeypatch.setattr(downloads, "safe_download", lambda *args, **kwargs: wanted.append((args, kwargs)))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: wanted.append(args))
    checked: list[Any] = []
    original = amp_check._distance
    monkeypatch.setattr(amp_check, "_distance", lambda run, model: checked.append(run) or original(run, model))
    _train(XPUDetectionTrainer, tmp_path, data=data("detect"), device="xpu", amp=True, **_ONE_EPOCH)
    assert checked
    assert not wanted


# What bf16 can hold and fp16 can't


def _overflow_fp16(model: nn.Module, images: torch.Tensor) -> int:
    """Scale a model's attention values so that fp16 can't hold them; in float32 it computes what it did.

    The values pass linear layers only, up to the projection that takes the scale off again. The scale is a power of
    two, spread over weights, statistics and factors so that fp16, which checkpoints are saved in, can hold each.

    Returns:
        The index of the layer, to be frozen: batch statistics would undo the scale.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over the images seen
    with torch.no_grad():
        model.train()(images)
    model.eval()
    layer = next(i for i, module in enumerate(model.model) if type(module).__name__ == "C2PSA")
    attention = model.model[layer].m[0].attn
    heads = torch.arange(attention.qkv.conv.out_channels).view(attention.num_heads, -1)
    values = heads[:, 2 * attention.key_dim :].ravel()
    for parameter in (attention.qkv.bn.weight, attention.qkv.bn.bias):
        parameter.data[values] *= 2**15
    for conv in (attention.pe, attention.proj):  # each takes the scale off …
        conv.conv.weight.data *= 2**-8
        conv.bn.running_mean *= 2**7
        conv.bn.running_var *= 2**14
    attention.pe.bn.weight.data *= 2**15  # … and the first, which adds to the values, puts it on again
    attention.pe.bn.bias.data *= 2**15
    return layer


def _flat(output: Any) -> torch.Tensor:
    """Return the boxes and scores of a model in evaluation mode."""
    return output[0].float().cpu()


@pytest.mark.xpu_hardware
@pytest.mark.filterwarnings("ignore:.*scheduler:UserWarning")
def test_a_bf16_run_stays_finite_where_fp16_overflows(xpu: torch.device, digits_data: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(8, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    model = YOLO("yolo11n.yaml")
    unscaled = YOLO("yolo11n.yaml")
    unscaled.model.load_state_dict(model.model.state_dict())
    layer = _overflow_fp16(model.model, images)
    for module in unscaled.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        unscaled.model.train()(images)
        expected, scaled = _flat(unscaled.model.eval()(images)), _flat(model.model(images))
    torch.testing.assert_close(scaled, expected, rtol=0.05, atol=0.05)

    model.model.to(xpu)
    with torch.no_grad():
        with _run("fp16").autocast():
            assert not _flat(model.model(images.to(xpu))).isfinite().all(), "fp16 doesn't overflow: nothing is tested"
        with _run("bf16").autocast():
            assert _flat(model.model(images.to(xpu))).isfinite().all()
    model.model.cpu()
    model.save("scaled.pt")

    trainer = XPUDetectionTrainer(
        overrides={
            "model": "scaled.pt",
            "data": digits_data,
            "device": "xpu",
            "freeze": [layer],
            "epochs": 1,
            "imgsz": 96,
            "batch": 16,
            "workers": 0,
            "plots": False,
            "project": str(tmp_path),
        }
    )
    detections: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    def watch(validator: Any) -> None:
        postprocess = validator.postprocess

        def noting(predictions: Any) -> Any:
            found = postprocess(predictions)
            detections[validator.training] += [image["bboxes"].cpu() for image in found]
            return found

        validator.postprocess = noting

    epochs: list[dict[str, float]] = []
    trainer.add_callback("on_val_start", watch)
    trainer.add_callback("on_fit_epoch_end", lambda trainer: epochs.append(dict(trainer.metrics)))
    trainer.train()
    assert trainer.xpu.precision.name == "bf16"
    assert math.isfinite(epochs[0]["val/box_loss"])
    for metrics in (*epochs, trainer.metrics):
        assert all(map(math.isfinite, metrics.values()))
    for boxes in detections.values():
        assert sum(map(len, boxes))
        assert torch.cat(boxes).isfinite().all()


# Coordinates


def _decoded(model: nn.Module, image: torch.Tensor, run: Run | None) -> torch.Tensor:
    """Return the boxes of a copy of a model: a head keeps its anchors in the dtype that it first met."""
    with torch.no_grad(), nullcontext() if run is None else run.autocast():
        return deepcopy(model)(image)[0][:, :4].float().cpu()


@pytest.mark.xpu_hardware
def test_bf16_keeps_boxes_to_a_fraction_of_a_pixel(xpu: torch.device) -> None:
    torch.manual_seed(0)
    model = YOLO("yolo11n.yaml").model.to(xpu).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.5)
            nn.init.normal_(module.bias)
    image = torch.rand(1, 3, 640, 640).to(xpu)
    exact = _decoded(model, image, None)
    run = _run("bf16")
    without = (_decoded(model, image, run) - exact).abs()
    with applied(coordinates.patches(), run):
        inside = (_decoded(model, image, run) - exact).abs()
    figures = f"inside of the rows {inside.mean():.3f} px on average and {inside.max():.2f} at worst, "
    figures += f"without them {without.mean():.3f} and {without.max():.2f}"
    assert inside.mean() < 0.1, figures
    assert inside.max() < 1, figures
    assert without.mean() > 0.3, f"there is nothing to mend: {figures}"
