"""What the host counts of labels: used for the labels that it counted, and for no others."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ultralytics.utils.loss import v8DetectionLoss

import xpu_simulator
from yolo_xpu_trainer import devices
from yolo_xpu_trainer.policies import loss_syncs
from yolo_xpu_trainer.run import Precision, Run

Batch = dict[str, Any]
Change = Callable[[Batch], Any]


def new_run() -> Run:
    return Run(devices.info(0), (0,), Precision("fp32", "the test says so"))


def labelled(per_image: list[int]) -> Batch:
    """Return a batch on the host with so many labels in each image."""
    index = torch.arange(len(per_image)).repeat_interleave(torch.tensor(per_image)).float()
    generator = torch.Generator().manual_seed(len(index))
    boxes, classes = torch.rand(len(index), 4, generator=generator), torch.arange(len(index))[:, None].float()
    return {"img": torch.zeros(len(per_image), 3, 8, 8), "batch_idx": index, "cls": classes, "bboxes": boxes}


def moved(run: Run, batch: Batch, device: torch.device) -> Batch:
    """Move a batch to the device, as a run does."""
    moving = loss_syncs.xpu_move_batch(SimpleNamespace(xpu=run), batch)
    next(moving)
    there = {key: value.to(device) for key, value in batch.items()}
    with pytest.raises(StopIteration) as stopped:
        moving.send(there)
    return stopped.value.value  # type: ignore[no-any-return]


def padded(batch: Batch, torch_of_losses: Any, preprocess: Any) -> torch.Tensor | type[Exception]:
    """Pad a batch's labels as Ultralytics' losses do, or return what kind of error that is."""
    device = batch["img"].device
    scale = torch.tensor([640.0, 480.0, 640.0, 480.0], device=device)
    try:
        columns = batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]
        targets = torch_of_losses.cat(columns, 1)
        result = preprocess(SimpleNamespace(device=device), targets.to(device), len(batch["img"]), scale_tensor=scale)
        return result.cpu()  # type: ignore[no-any-return]
    except Exception as error:
        return type(error)


def put(batch: Batch, **values: Any) -> None:
    batch.update(values)


def kept(batch: Batch, keep: torch.Tensor) -> None:
    put(batch, **{key: batch[key][keep] for key in ("batch_idx", "cls", "bboxes")})


ON_DEVICE: dict[str, Change] = {
    "nothing": lambda b: None,
    "images joined": lambda b: put(b, img=b["img"][:1], batch_idx=torch.zeros_like(b["batch_idx"])),
    "images joined in place": lambda b: put(b, img=b["img"][:1], batch_idx=b["batch_idx"].zero_()),
    "images joined by data": lambda b: put(b, img=b["img"][:1], _=b["batch_idx"].data.zero_()),
    "other memory": lambda b: setattr(b["batch_idx"], "data", torch.zeros_like(b["batch_idx"])),
    "all in one image": lambda b: b["batch_idx"].fill_(1),
    "moved by one in place": lambda b: b["batch_idx"].sub_(1).clamp_(0),
    "moved by a view": lambda b: b["batch_idx"].view(-1, 1)[2:].fill_(3),
    "moved by a detached one": lambda b: b["batch_idx"].detach().fill_(2),
    "images dropped": lambda b: put(b, img=b["img"][:2]),
    "images added": lambda b: put(b, img=torch.cat((b["img"], b["img"]))),
    "labels filtered": lambda b: kept(b, b["cls"][:, 0] > 2),
    "all labels dropped": lambda b: kept(b, b["cls"][:, 0] > 99),
    "labels repeated": lambda b: kept(b, torch.arange(len(b["cls"]), device=b["cls"].device).repeat_interleave(2)),
    "reordered": lambda b: kept(b, torch.arange(len(b["cls"]), device=b["cls"].device).flip(0)),
    "reordered in place": lambda b: b["batch_idx"].copy_(b["batch_idx"].flip(0)),
    "boxes changed in place": lambda b: b["bboxes"].mul_(0.5),
    "boxes dropped": lambda b: put(b, bboxes=b["bboxes"][:2]),
    "viewed": lambda b: put(b, batch_idx=b["batch_idx"].view(-1, 1)),
    "unsqueezed": lambda b: put(b, batch_idx=b["batch_idx"].unsqueeze(0)),
    "reshaped": lambda b: put(b, batch_idx=b["batch_idx"].reshape(1, -1, 1)),
    "first label's everywhere": lambda b: put(b, batch_idx=b["batch_idx"][:1].expand(len(b["cls"])).reshape(-1)),
    "every other twice": lambda b: put(b, batch_idx=b["batch_idx"].as_strided((len(b["cls"]), 1), (0, 1))),
    "other bytes": lambda b: put(b, batch_idx=b["batch_idx"].view(torch.int32)),
    "as integers": lambda b: put(b, batch_idx=b["batch_idx"].long()),
    "cloned": lambda b: put(b, batch_idx=b["batch_idx"].clone()),
    "on the host": lambda b: put(b, batch_idx=b["batch_idx"].cpu()),
    "labels in half": lambda b: put(b, **{key: b[key].half() for key in ("batch_idx", "cls", "bboxes")}),
    "beyond the last image": lambda b: b["batch_idx"].add_(1),
    "negative": lambda b: b["batch_idx"].sub_(1),
}
ON_HOST: dict[str, Change] = {
    "integers": lambda b: put(b, batch_idx=b["batch_idx"].long()),
    "fractions": lambda b: b["batch_idx"].add_(0.4),
    "column": lambda b: put(b, batch_idx=b["batch_idx"][:, None]),
    "reordered": lambda b: kept(b, torch.arange(len(b["cls"])).flip(0)),
    "beyond the last image": lambda b: b["batch_idx"].add_(1),
    "far beyond the last image": lambda b: b["batch_idx"].mul_(1e12),
    "negative": lambda b: b["batch_idx"].sub_(1),
    "not a number": lambda b: b["batch_idx"].fill_(torch.nan),
    "empty": lambda b: kept(b, torch.zeros(len(b["cls"]), dtype=torch.bool)),
}


def same_as_plain(device: torch.device, before: Change, after: Change, per_image: list[int]) -> None:
    run = new_run()
    ours, theirs = labelled(per_image), labelled(per_image)
    for batch in (ours, theirs):
        before(batch)
    ours = moved(run, ours, device)
    theirs = {key: value.to(device) for key, value in theirs.items()}
    for batch in (ours, theirs):
        after(batch)
    original = v8DetectionLoss.preprocess
    expected = padded(theirs, torch, original)
    found = padded(
        ours, loss_syncs.torch_of_losses.replacement(run, torch), loss_syncs.preprocess.replacement(run, original)
    )
    if isinstance(expected, type) or isinstance(found, type):
        assert found == expected
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("per_image", [[3, 1, 0, 2], [1, 1, 1, 1], [0, 0, 5, 0]], ids=str)
@pytest.mark.parametrize("name", ON_DEVICE)
def test_labels_changed_on_the_device_are_padded_as_ultralytics_pads_them(
    xpu: torch.device, name: str, per_image: list[int]
) -> None:
    same_as_plain(xpu, ON_DEVICE["nothing"], ON_DEVICE[name], per_image)


@pytest.mark.parametrize("per_image", [[3, 1, 0, 2], [1, 1, 1, 1], [0, 0, 5, 0]], ids=str)
@pytest.mark.parametrize("name", ON_HOST)
def test_labels_of_every_kind_are_padded_as_ultralytics_pads_them(
    xpu: torch.device, name: str, per_image: list[int]
) -> None:
    same_as_plain(xpu, ON_HOST[name], ON_DEVICE["nothing"], per_image)


def test_labels_out_of_their_images_order_are_not_counted(xpu: torch.device) -> None:
    """Releases of Ultralytics differ in what they make of them."""
    batch = labelled([2, 2])
    assert loss_syncs._count(batch["batch_idx"], batch["img"]) is not None
    assert loss_syncs._count(batch["batch_idx"].flip(0), batch["img"]) is None


def test_a_batch_moved_in_inference_mode_is_not_counted(xpu: torch.device) -> None:
    with torch.inference_mode():
        run, batch = new_run(), labelled([2, 2])
        there = moved(run, batch, xpu)
        assert loss_syncs._COUNTS not in run.stash
        assert there["batch_idx"].is_inference()


# Anchors and constants


def test_anchors_changed_in_place_are_those_of_one_caller(xpu: torch.device) -> None:
    from ultralytics.utils import tal

    run = new_run()
    make_anchors = loss_syncs.make_anchors.replacement(run, tal.make_anchors)
    maps, strides = [torch.zeros(1, 1, n, n, device=xpu) for n in (4, 2)], torch.tensor([8.0, 16.0], device=xpu)
    expected = tal.make_anchors(maps, strides, 0.5)
    for _ in range(3):
        points, of_points = make_anchors(maps, strides, 0.5)
        assert torch.equal(points, expected[0])
        assert torch.equal(of_points, expected[1])
        points.mul_(of_points)
        of_points.zero_()
    strides.mul_(2)
    assert torch.equal(make_anchors(maps, strides, 0.5)[1], tal.make_anchors(maps, strides, 0.5)[1])


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.int64])
@pytest.mark.parametrize(
    "numbers", [[0.0, -0.0], [-0.0, 0.0], [1, 2], [1.0, 2.0], (1, 2.5), [], [float("inf")]], ids=str
)
def test_constants_are_those_asked_for(xpu: torch.device, numbers: list[float], dtype: torch.dtype | None) -> None:
    stand_in = loss_syncs.torch_of_losses.replacement(new_run(), torch)
    for other in ([0.0, -0.0], [-0.0, 0.0], [1, 2], [1.0, 2.0]):
        stand_in.tensor(other, device=xpu)
    if dtype is torch.int64 and torch.inf in numbers:
        with pytest.raises(RuntimeError):
            stand_in.tensor(numbers, device=xpu, dtype=dtype)
        return
    for _ in range(2):
        found, expected = stand_in.tensor(numbers, device=xpu, dtype=dtype), torch.tensor(numbers, dtype=dtype)
        assert found.dtype is expected.dtype
        assert torch.equal(found.cpu().signbit(), expected.signbit())
        assert torch.equal(found.cpu(), expected)
        found.add_(1)


def test_constants_follow_the_default_dtype(xpu: torch.device) -> None:
    stand_in = loss_syncs.torch_of_losses.replacement(new_run(), torch)
    assert stand_in.tensor([1.0], device=xpu).dtype is torch.float32
    torch.set_default_dtype(torch.float16)
    try:
        assert stand_in.tensor([1.0], device=xpu).dtype is torch.float16
    finally:
        torch.set_default_dtype(torch.float32)


# What the host need not wait for


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("images", [1, 3, 8])
def test_targets_are_padded_as_ultralytics_pads_them(xpu: torch.device, images: int) -> None:
    run = new_run()
    generator = torch.Generator().manual_seed(images)
    for total in (1, 2, 7, 40):
        index = torch.randint(images, (total,), generator=generator).sort().values
        targets = torch.cat((index[:, None].float(), torch.rand(total, 5, generator=generator)), 1)
        scale = torch.tensor([640.0, 480.0, 640.0, 480.0], device=xpu)
        loss = SimpleNamespace(device=xpu)
        moved = targets.to(xpu)
        counts = loss_syncs._count(index, torch.empty(images))
        assert counts is not None
        loss_syncs._remember(run, moved, counts)
        original = v8DetectionLoss.preprocess
        preprocess = loss_syncs.preprocess.replacement(run, original)
        expected = original(loss, moved, images, scale)
        with xpu_simulator.count() as counts:
            assert torch.equal(preprocess(loss, moved, images, scale), expected)
        assert sum(counts.syncs.values()) == 1  # the comparison's
        moved.add_(0)  # nobody knows what it holds now
        with xpu_simulator.count() as counts:
            assert torch.equal(preprocess(loss, moved, images, scale), expected)
        assert sum(counts.syncs.values()) > 1
