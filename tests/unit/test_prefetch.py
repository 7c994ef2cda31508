"""Batches are copied ahead through a loader: their order, their memory, how many."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import Options, devices
from yolo_xpu_trainer.batches import AHEAD
from yolo_xpu_trainer.errors import OptionValueError
from yolo_xpu_trainer.plugins import hooks
from yolo_xpu_trainer.policies.prefetch import PREFETCH, LookAhead
from yolo_xpu_trainer.run import Precision, Run

from ..options import options


def images_on_the_device() -> int:
    """Count the batches of images on the device that aren't normalised yet."""
    gc.collect()
    found = (value for value in gc.get_objects() if type(value) is torch.Tensor)
    return sum(v.is_xpu and v.dtype is torch.uint8 and v.dim() == 4 for v in found)


class Loader(list[dict[str, Any]]):
    """A loader of given batches, which tells how many were fetched.

    Attributes:
        fetched: How many.
    """

    fetched = 0
    num_workers = 2
    closed = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(len(self)):
            self.fetched += 1
            yield {**self[i]}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def loader(xpu: torch.device) -> Loader:
    """Five batches."""
    return Loader({"img": torch.full((1, 3, 2, 2), i, dtype=torch.uint8).pin_memory()} for i in range(5))


@pytest.fixture
def ahead(xpu: torch.device, loader: Loader) -> LookAhead:
    """Goes two batches ahead through the loader."""
    run = Run(devices.info(0), (0,), Precision("fp32", "the test says so"), options(prefetch=2), hooks=hooks())
    return LookAhead(SimpleNamespace(device=xpu, xpu=run, train_loader=loader), 2)


def arrived(ahead: LookAhead, batch: dict[str, Any]) -> Any:
    """Return a batch as it arrives on the device, None where there is no copy of it."""
    return ahead._trainer.xpu.stash[AHEAD].arrive(batch)


def number(ahead: LookAhead, batch: dict[str, Any]) -> int:
    return int(arrived(ahead, batch)["img"].unique().item())


def test_it_fetches_ahead_but_not_before_the_first_batch_is_asked_for(ahead: LookAhead, loader: Loader) -> None:
    iterator = enumerate(ahead.through(loader))
    assert loader.fetched == 0
    for i, batch in iterator:
        assert batch["img"].device.type == "cpu"
        assert type(batch) is dict
        assert number(ahead, batch) == i
        assert arrived(ahead, batch) is None
        assert loader.fetched == min(i + 3, 5)


def test_memory_is_kept_for_the_stream_that_uses_it(
    ahead: LookAhead, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulated device can't show what happens otherwise: kernels of two streams never overlap there."""
    kept: list[tuple[int, Any]] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: kept.append((self.data_ptr(), stream)))
    for batch in ahead.through(loader):
        assert (arrived(ahead, batch)["img"].data_ptr(), torch.xpu.current_stream()) == kept[-1]
    assert len(kept) == 5


def test_every_iteration_has_its_own_batches(ahead: LookAhead, loader: Loader) -> None:
    outer = ahead.through(loader)
    assert number(ahead, next(outer)) == number(ahead, next(ahead.through(loader))) == 0
    assert [number(ahead, batch) for batch in outer] == [1, 2, 3, 4]


def test_a_release_lets_go_of_the_batches(ahead: LookAhead, loader: Loader) -> None:
    iterator = ahead.through(loader)
    batch = next(iterator)
    assert images_on_the_device() == 3
    del batch
    ahead.release()
    assert images_on_the_device() == 0
    assert list(iterator) == []


def test_a_value_that_was_added_is_kept(ahead: LookAhead, loader: Loader) -> None:
    batch = next(ahead.through(loader))
    batch["more"] = "text"
    found = arrived(ahead, batch)
    assert found["img"].device.type == "xpu"
    assert found["more"] == "text"


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch.update(img=torch.ones(1)),
        lambda batch: batch["img"].add_(1),
        lambda batch: batch.pop("img"),
    ],
    ids=["replaced", "in place", "removed"],
)
def test_a_batch_that_was_changed_has_no_copies(ahead: LookAhead, loader: Loader, change: Any) -> None:
    batch = next(ahead.through(loader))
    change(batch)
    assert arrived(ahead, batch) is None


def test_copies_that_nobody_asked_for_are_let_go_of(ahead: LookAhead, loader: Loader) -> None:
    iterator = ahead.through(loader)
    first = next(iterator)
    next(iterator)
    assert arrived(ahead, first) is None


# Options


@pytest.mark.parametrize(("given", "meant"), [(0, 0), (3, 3), ("2", 2), (" 1 ", 1)])
def test_the_depth_is_an_integer(given: object, meant: int) -> None:
    assert Options.pop_from({"xpu_prefetch": given}, [PREFETCH]) == {"prefetch": meant}
    assert Options.environment_of({"prefetch": meant})["YOLO_XPU_PREFETCH"] == str(meant)


@pytest.mark.parametrize("given", [-1, 1.5, "1.0", True, False, None, "", "two"], ids=repr)
def test_anything_else_is_refused(given: object) -> None:
    with pytest.raises(OptionValueError, match=r"xpu_prefetch=.* is invalid: it must be an integer ≥ 0"):
        Options.pop_from({"xpu_prefetch": given}, [PREFETCH])
