"""Many tensors in one copy, to the device and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xpu_simulator
from xpu_simulator import faults
from yolo_xpu_trainer.transfer import to_device, to_host


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is type(b)
        assert list(a) == list(b)
        for key in a:
            if isinstance(b[key], torch.Tensor):
                assert a[key].dtype == b[key].dtype
                assert a[key].shape == b[key].shape
                assert a[key].stride() == b[key].stride()
                assert torch.equal(a[key], b[key])
            else:
                assert a[key] == b[key]


def small_tensors() -> dict[str, Any]:
    return {
        "img": torch.zeros(1, 3, 300, 300, dtype=torch.uint8),
        "cls": torch.rand(7, 1),
        "none": torch.zeros(0, 4),
        "flags": torch.rand(5) > 0.5,
        "wide": torch.rand(3, 2, dtype=torch.float64),
        "half": torch.rand(3).half(),
        "numbers": torch.arange(3),
        "scalar": torch.tensor(2.5),
        "turned": torch.rand(3, 2).t(),
        "name": "a.jpg",
        "nothing": None,
    }


def test_packed_tensors_are_as_single_copies_are(xpu: torch.device) -> None:
    batch = small_tensors()
    with xpu_simulator.asynchronous(), xpu_simulator.count() as counts:
        moved = to_device(batch, xpu, non_blocking=True)
        moved = {key: value.clone() if key == "cls" else value for key, value in moved.items()}
    assert set(batch) - set(moved) == {"img", "turned", "name", "nothing"}
    assert sum(counts.h2d.values()) == counts.h2d["pinned", "non_blocking"] == 1
    assert_same([{key: value.cpu() for key, value in moved.items()}], [{key: batch[key] for key in moved}])
    for key, value in moved.items():
        alone = batch[key].to(xpu)
        assert value.stride() == alone.stride()
        assert value.device == alone.device
        assert value._base is None
        assert value.data_ptr() % 512 == alone.data_ptr() % 512 or not value.numel()


def test_a_change_to_one_is_no_change_to_another(xpu: torch.device) -> None:
    moved = to_device(small_tensors(), xpu, non_blocking=False)
    weight = torch.ones(7, 1, device=xpu, requires_grad=True)
    loss = (weight * moved["cls"]).sum()
    moved["numbers"].add_(1)
    loss.backward()
    assert torch.equal(weight.grad, moved["cls"])  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_packed_where_that_saves_no_copy(xpu: torch.device, count: int) -> None:
    batch = {
        "img": torch.zeros(1, 3, 300, 300),
        "none": torch.zeros(0),
        **{str(i): torch.ones(2) for i in range(count)},
    }
    assert to_device(batch, xpu, non_blocking=True) == {}


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("staged", [0, 100, 1 << 20])
def test_tensors_of_many_kinds_come_to_the_host_in_order(xpu: torch.device, staged: int) -> None:
    generator = torch.Generator().manual_seed(0)
    host = [
        torch.rand(3, 4, generator=generator),
        torch.tensor(7),
        torch.zeros(0, 5),
        torch.rand(2, 3, 5, 5, generator=generator).to(memory_format=torch.channels_last),
        torch.rand(300, generator=generator).half(),
        torch.tensor(1.5),
        torch.arange(9).view(3, 3).t(),
        torch.rand(64, generator=generator) > 0.5,
    ]
    mixed = [tensor if i == 5 else tensor.to(xpu) for i, tensor in enumerate(host)]
    for before, after in zip(host, to_host(mixed, staged), strict=True):
        assert after.device.type == "cpu"
        assert after.dtype == before.dtype
        assert torch.equal(after, before)
        assert after.is_contiguous()


@pytest.mark.parametrize("text", [None, "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", "UR_RESULT_ERROR_OUT_OF_RESOURCES"])
def test_where_there_is_no_memory_to_join_tensors_they_are_copied_one_by_one(
    text: str | None, xpu: torch.device
) -> None:
    host = [torch.rand(5), torch.rand(3, 2)]
    there = [tensor.to(xpu) for tensor in host]
    faults.out_of_memory(at_launch=1, text=text)
    with xpu_simulator.count() as counts:
        found = to_host(there)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, host, strict=True))
    assert counts.d2h == len(host)


def test_another_error_of_the_joining_is_raised(xpu: torch.device) -> None:
    there = [torch.rand(5).to(xpu), torch.rand(3, 2).to(xpu)]
    faults.device_lost(at_launch=1)
    with pytest.raises(RuntimeError, match="DEVICE_LOST"):
        to_host(there)
