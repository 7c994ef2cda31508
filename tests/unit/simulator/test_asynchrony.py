"""In the asynchrony mode, what forgets to wait sees poison, and what waits sees its data."""

import os
import subprocess
import sys

import pytest
import torch

import xpu_simulator


@pytest.fixture
def late(xpu):
    with xpu_simulator.asynchronous():
        yield xpu


def _pinned(*values):
    return torch.tensor(values).pin_memory()


def _is_poison(tensor):
    return bool(tensor.isnan().all()) if tensor.is_floating_point() else bool((tensor < 0).all())


def test_a_kernel_of_the_same_stream_comes_after_the_copy(late):
    assert (_pinned(1.0, 2.0).to(late, non_blocking=True) + 1).tolist() == [2, 3]


def test_a_kernel_of_another_stream_that_does_not_wait_sees_poison(late):
    side = torch.xpu.Stream()
    with torch.xpu.stream(side):
        x = _pinned(1.0, 2.0).to(late, non_blocking=True)
    assert _is_poison(x * 1)
    side.synchronize()
    assert (x * 1).tolist() == [1, 2]


@pytest.mark.parametrize("values", [(1.0, 2.0), (1, 2)])
@pytest.mark.parametrize(
    "wait",
    [
        lambda side: torch.xpu.current_stream().wait_stream(side),
        lambda side: torch.xpu.current_stream().wait_event(side.record_event()),
        lambda side: side.record_event().wait(),
        lambda side: side.record_event().synchronize(),
        lambda side: side.synchronize(),
        lambda side: torch.xpu.synchronize(),
        pytest.param(lambda side: torch.accelerator.synchronize(), marks=pytest.mark.needs("torch.accelerator")),
    ],
)
def test_a_kernel_of_another_stream_that_waits_sees_the_data(wait, values, late):
    side = torch.xpu.Stream()
    with torch.xpu.stream(side):
        x = _pinned(*values).to(late, non_blocking=True)
    wait(side)
    assert (x * 1).tolist() == list(values)


def test_an_event_covers_only_what_was_before_it(late):
    side = torch.xpu.Stream()
    with torch.xpu.stream(side):
        before = _pinned(1.0).to(late, non_blocking=True)
        event = side.record_event()
        after = _pinned(2.0).to(late, non_blocking=True)
    torch.xpu.current_stream().wait_event(event)
    assert (before * 1).tolist() == [1]
    assert _is_poison(after * 1)


def test_waiting_for_a_stream_does_not_make_the_host_wait(late):
    side = torch.xpu.Stream()
    source = _pinned(1.0)
    with torch.xpu.stream(side):
        x = source.to(late, non_blocking=True)
    torch.xpu.current_stream().wait_stream(side)
    source.fill_(5.0)
    assert (x * 1).tolist() == [5]


def test_a_source_that_changes_too_early_shows(late):
    source = _pinned(1.0)
    x = source.to(late, non_blocking=True)
    source.fill_(7.0)
    assert (x * 1).tolist() == [7]


def test_a_source_that_is_dropped_is_kept_until_the_copy(late):
    x = torch.full((1000,), 3.0).pin_memory().to(late, non_blocking=True)
    junk = [torch.zeros(1000).pin_memory() for _ in range(10)]
    assert (x * 1).eq(3).all().item()
    del junk


def test_a_copy_to_the_host_lands_with_the_synchronisation(late):
    x = torch.arange(3.0, device=late)
    host = x.to("cpu", non_blocking=True)
    pinned = torch.empty(3, pin_memory=True).copy_(x, non_blocking=True)
    assert _is_poison(host)
    assert _is_poison(pinned)
    torch.xpu.synchronize()
    assert host.tolist() == pinned.tolist() == [0, 1, 2]


def test_blocking_copies_are_not_late(late):
    side = torch.xpu.Stream()
    with torch.xpu.stream(side):
        copies = [_pinned(1.0, 1.0).to(late), torch.ones(2).to(late)]
    assert [(x * 1).tolist() for x in copies] == [[1, 1]] * 2


def test_pageable_memory_is_read_at_once_and_its_copy_lands_late(late):
    side = torch.xpu.Stream()
    host = torch.ones(2)
    with torch.xpu.stream(side):
        copy = host.to(late, non_blocking=True)
    host.zero_()
    assert _is_poison((copy * 1).cpu())
    side.synchronize()
    assert copy.tolist() == [1, 1]


def test_copies_of_one_stream_keep_their_order(late):
    x = torch.zeros(2, device=late)
    x.copy_(_pinned(1.0, 1.0), non_blocking=True)
    host = x.to("cpu", non_blocking=True)
    x.copy_(_pinned(2.0, 2.0), non_blocking=True)
    torch.xpu.synchronize()
    assert host.tolist() == [1, 1]
    assert x.tolist() == [2, 2]


def test_memory_freed_and_used_again_without_record_stream_is_overwritten(late):
    torch.xpu.synchronize()
    torch.xpu.empty_cache()
    side = torch.xpu.Stream()
    buffer = torch.empty(1000, device=late)
    with torch.xpu.stream(side):
        buffer.copy_(torch.full((1000,), 9.0).pin_memory(), non_blocking=True)
    del buffer
    victim = torch.zeros(1000, device=late)
    side.synchronize()
    assert victim.eq(9).all().item()


def test_a_stream_that_is_asked_in_a_loop_gets_done(late):
    side = torch.xpu.Stream()
    with torch.xpu.stream(side):
        _pinned(1.0).to(late, non_blocking=True)
        event = side.record_event()
    assert not event.query()
    assert event.query()
    assert side.query()


def test_what_is_under_way_lands_when_the_mode_ends(xpu):
    with xpu_simulator.asynchronous():
        x = _pinned(4.0).to(xpu, non_blocking=True)
        host = x.to("cpu", non_blocking=True)
    assert host.tolist() == [4]
    assert (x * 1).tolist() == [4]


def test_training_with_late_copies_gives_the_same_losses(xpu):
    def losses():
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 2).to(xpu)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        values = []
        for _ in range(4):
            batch = torch.randn(8, 4).pin_memory().to(xpu, non_blocking=True)
            loss = layer(batch).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            values.append(loss.item())
        return values

    expected = losses()
    with xpu_simulator.asynchronous():
        assert losses() == expected


def test_the_environment_switches_the_mode_on():
    code = "import torch; print(torch.ones(2, device='xpu').to('cpu', non_blocking=True).isnan().all().item())"
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", "XPU_SIMULATOR_ASYNCHRONOUS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
