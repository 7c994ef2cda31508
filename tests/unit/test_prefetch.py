"""A loader that prefetches: its order, its memory, its depth."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolo_xpu_trainer import Options
from yolo_xpu_trainer.errors import OptionValueError
from yolo_xpu_trainer.policies.prefetch import Prefetcher


def images_on_the_device() -> int:
    """Count the batches of images on the device that aren't normalised yet."""
    gc.collect()
    found = (value for value in gc.get_objects() if type(value) is torch.Tensor)
    return sum(v.device.type == "xpu" and v.dtype is torch.uint8 and v.dim() == 4 for v in found)


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
def loader(xpu: torch.device) -> Any:
    """A prefetcher, two batches deep, of a loader of five batches."""
    run = SimpleNamespace(options=Options(prefetch=2), targets=None)
    trainer = SimpleNamespace(device=xpu, xpu=run)
    batches = Loader({"img": torch.full((1, 3, 2, 2), i, dtype=torch.uint8).pin_memory()} for i in range(5))
    return Prefetcher(batches, trainer)


def test_it_fetches_ahead_but_not_before_the_first_batch_is_asked_for(loader: Any) -> None:
    iterator = enumerate(loader)
    assert loader.fetched == 0
    for i, batch in iterator:
        assert batch["img"].unique().tolist() == [i]
        assert loader.fetched == min(i + 3, 5)


def test_memory_is_kept_for_the_stream_that_uses_it(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated device can't show what happens otherwise: kernels of two streams never overlap there."""
    kept: list[tuple[int, Any]] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: kept.append((self.data_ptr(), stream)))
    for batch in loader:
        assert kept[-1] == (batch["img"].data_ptr(), torch.xpu.current_stream())
    assert len(kept) == 5


def test_every_iteration_has_its_own_batches(loader: Any) -> None:
    outer = iter(loader)
    first = next(outer)["img"].unique().item()
    assert next(iter(loader))["img"].unique().item() == first == 0
    assert [batch["img"].unique().item() for batch in outer] == [1, 2, 3, 4]


def test_closing_lets_go_of_the_batches_and_closes_the_loader(loader: Any) -> None:
    iterator = iter(loader)
    batch = next(iterator)
    assert images_on_the_device() == 3
    del batch
    loader.close()
    assert images_on_the_device() == 0
    assert loader.closed
    assert list(iterator) == []


# Options


@pytest.mark.parametrize(("given", "meant"), [(0, 0), (3, 3), ("2", 2), (" 1 ", 1)])
def test_the_depth_is_a_whole_number(given: object, meant: int) -> None:
    assert Options.take({"xpu_prefetch": given}) == {"prefetch": meant}
    assert Options(prefetch=meant).environment()["YOLO_XPU_PREFETCH"] == str(meant)


@pytest.mark.parametrize("given", [-1, 1.5, "1.0", True, False, None, "", "two"], ids=repr)
def test_anything_else_is_refused(given: object) -> None:
    with pytest.raises(OptionValueError, match=r"xpu_prefetch=.* is no whole number from 0 on"):
        Options.take({"xpu_prefetch": given})
