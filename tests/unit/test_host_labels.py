"""A tensor whose contents the host knows computes what a plain one does, and answers without a sync."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import xpu_simulator
from yolo_xpu_trainer import Precision, Run, devices
from yolo_xpu_trainer.policies.loss_syncs import host_labels
from yolo_xpu_trainer.policies.loss_syncs.host_labels import HostKnown, known
from yolo_xpu_trainer.versions import torch_release

LABELS = torch.tensor([[0, 1, 0.5, 0.5, 0.2, 0.3], [0, 2, 0.1, 0.4, 0.01, 0.5], [2, 0, 0.7, 0.2, 0.4, 0.02]])
SIZE = torch.tensor([64.0, 96.0])


def of_obb(labels: Any, size: Any, stride: Any) -> Any:
    """Filter labels by their size, and count those of each image."""
    size = size * stride[0]
    kept = labels[(labels[:, 4] * float(size[1]) >= 2) & (labels[:, 5] * float(size[0]) >= 2)]
    image = kept[:, 0].long()
    _, counts = image.unique(return_counts=True)
    n = counts.to(dtype=torch.int32).max()
    out = torch.zeros(3, n, 5, device=labels.device)
    starts = torch.zeros(4, dtype=torch.long, device=labels.device).scatter_add_(0, image + 1, torch.ones_like(image))
    out[image, torch.arange(len(kept), device=labels.device) - starts.cumsum(0)[image]] = kept[:, 1:]
    return out, size[[1, 0, 1, 0]]


def of_pose(labels: Any, size: Any, stride: Any) -> Any:
    """Pad what each image has."""
    image = labels[:, 0].flatten().long()
    counts = torch.bincount(image, minlength=3)
    out = labels.new_zeros((3, int(counts.max()), 6))
    out[image, torch.arange(len(image), device=labels.device) - (counts.cumsum(0) - counts)[image]] = labels
    return out, counts


def of_older_pose(labels: Any, size: Any, stride: Any) -> Any:
    """Take the labels of one image after the other."""
    image = labels[:, 0].view(-1, 1).flatten().long()
    most = torch.unique(image, return_counts=True)[1].max()
    out = torch.zeros((3, most, 6), device=labels.device)
    for i in range(3):
        of_image = labels[image == i]
        out[i, : of_image.shape[0]] = of_image
    return (out,)


@pytest.mark.parametrize("compute", [of_obb, of_pose, of_older_pose])
@pytest.mark.parametrize("everything", [True, False], ids=["all labels are large", "some are small"])
def test_losses_compute_the_same_without_a_sync(
    xpu: torch.device, compute: Callable[..., Any], everything: bool
) -> None:
    labels = LABELS if not everything else torch.cat((LABELS[:, :4], LABELS[:, 4:] + 0.2), 1)
    stride = torch.tensor([1.0, 2.0, 4.0])
    expected = compute(labels, SIZE, stride)
    there, size, strides = labels.to(xpu), SIZE.to(xpu), stride.to(xpu)
    compute(known(there, labels), known(size, SIZE), strides)  # reads the strides, once
    with xpu_simulator.count() as counts:
        found = compute(known(there, labels), known(size, SIZE), strides)
    # PyTorch 2.5 and 2.8 take a size out of a tensor without asking the tensor's class.
    assert len(counts.syncs) <= (torch_release() < (2, 9) and compute is not of_pose), counts.syncs
    assert [bool(torch.equal(a.cpu(), b)) for a, b in zip(found, expected, strict=True)] == [True] * len(expected)
    assert [a.dtype for a in found] == [b.dtype for b in expected]


@pytest.mark.parametrize("change", [lambda t: t.add_(1), lambda t: t[:, 0].zero_(), lambda t: t.mul_(2)])
def test_what_was_changed_is_asked_of_the_device(xpu: torch.device, change: Callable[[Any], Any]) -> None:
    there = LABELS.to(xpu)
    tensor = known(there, LABELS)
    assert float(tensor[0, 5]) == pytest.approx(0.3)
    change(there)
    expected = change(LABELS.clone())
    assert float(tensor[0, 0]) == float(there[0, 0].cpu())
    assert tensor.max().item() == there.max().item() != expected.new_zeros(()).item()


def test_what_is_not_listed_is_a_plain_tensor(xpu: torch.device) -> None:
    tensor = known(LABELS.to(xpu), LABELS)
    assert type(tensor) is HostKnown
    for other in (tensor + 1, tensor.clone(), tensor.sum(), tensor.cpu(), torch.stack((tensor, tensor))):
        assert type(other) is torch.Tensor
    for other in (copy.copy(tensor), copy.deepcopy(tensor), pickle.loads(pickle.dumps(tensor))):
        assert type(other) is torch.Tensor
        assert torch.equal(other.cpu(), LABELS)


CALLS: dict[str, Callable[[Any], Any]] = {
    "max(0)": lambda t: t.max(0),
    "max(dim=1)": lambda t: t.max(dim=1).values,
    "== None": lambda t: t == None,  # noqa: E711 - as users' code may have it
    "in": lambda t: t[0, 0] in [None, 1.0],
    "eq of a tensor": lambda t: t.eq(other=torch.zeros(3, 6, device=t.device)),
    "mul by name": lambda t: t.mul(other=2),
    "bincount by name": lambda t: torch.bincount(input=t[:, 0].long()),
    "bincount with weights": lambda t: torch.bincount(t[:, 0].long(), weights=torch.ones(3, device=t.device)),
    "an empty index": lambda t: t[0][[]],
    "a negative index": lambda t: t[-1][-2],
    "a mask of two dimensions": lambda t: t[t >= 0.5],
    "a mask that is too long": lambda t: t[torch.ones(4, dtype=torch.bool, device=t.device)],
    "a mask of nothing": lambda t: t[t[:, 0] >= 9],
    "format": lambda t: f"{t.max():.2f}",
    "repr": lambda t: repr(t).split("grad")[0],
    "a parameter": lambda t: torch.nn.Parameter(t).sum(),
    "len": len,
    "iteration": lambda t: [row.sum() for row in t],
    "to the host": lambda t: t.to("cpu"),
    "unique": lambda t: torch.unique(t[:, 0]),
    "unique with an inverse": lambda t: torch.unique(t[:, 0], return_inverse=True, return_counts=True),
    "unique of what is no image": lambda t: torch.unique(t[:, 4], return_counts=True),
    "unique, images left out": lambda t: torch.unique(t[:, 0], return_counts=True),
    "a size that is no integer": lambda t: torch.zeros(2, t[0, 1]),
    "indexing by indices": lambda t: t[t[:, 0].long()],
    "a view of another dtype": lambda t: t.view(torch.int32),
    "NumPy": lambda t: t.cpu().numpy().sum(),
}


@pytest.mark.parametrize("call", CALLS)
def test_any_other_call_gives_what_it_gives_for_a_plain_tensor(xpu: torch.device, call: str) -> None:
    def outcome(tensor: Any) -> Any:
        try:
            found = CALLS[call](tensor)
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            return type(error)
        return [t.cpu().tolist() if isinstance(t, torch.Tensor) else t for t in pytree.tree_leaves(found)]

    assert outcome(known(LABELS.to(xpu), LABELS)) == outcome(LABELS.to(xpu))


@pytest.mark.parametrize("expose", [lambda t: t.data, lambda t: t.untyped_storage()], ids=["data", "storage"])
def test_what_may_be_changed_without_a_new_version_is_forgotten(
    xpu: torch.device, expose: Callable[[Any], Any]
) -> None:
    tensor = known(LABELS.to(xpu), LABELS)
    expose(tensor)
    with xpu_simulator.count() as counts:
        assert float(tensor[0, 5]) == pytest.approx(0.3)
    assert counts.syncs


def test_numbers_are_rounded_as_on_the_device(xpu: torch.device) -> None:
    values = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    there = values.to(xpu)
    mask = (known(there, values) * 3.3333 >= 2) & (known(there, values) * 0.1 >= 0.07)
    assert torch.equal(known(there, values)[mask].cpu(), there[(there * 3.3333 >= 2) & (there * 0.1 >= 0.07)].cpu())


def test_a_tensor_that_needs_a_gradient_or_is_on_the_host_stays_as_it_is(xpu: torch.device) -> None:
    weight = torch.nn.Parameter(LABELS.to(xpu))
    assert known(weight, LABELS) is weight
    assert known(LABELS, LABELS) is LABELS


def test_a_loaders_memory_may_be_used_again(xpu: torch.device) -> None:
    run = Run(devices.info(0), (0,), Precision("fp32", "a test asks for it"))
    host = {"batch_idx": torch.tensor([0.0, 0.0, 1.0])}
    moved = {"batch_idx": host["batch_idx"].to(xpu)}
    host_labels.keep(run, host, moved)
    host["batch_idx"].numpy()[:] = 7
    assert host_labels._with_hosts(run, moved)["batch_idx"].max().item() == 1
