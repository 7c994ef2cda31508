"""The counters tell what a real device would have been asked to do, and which line asked."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

import xpu_simulator


def test_an_operator_is_a_launch_and_a_view_is_none(xpu):
    a = torch.ones(4, 4, device=xpu)
    with xpu_simulator.count() as counts:
        b = a.t()[1:].unsqueeze(0)
        c = b + 1
        c.relu_()
    assert counts.launches == 2
    assert counts.launches_by_op == {"aten::add.Tensor": 1, "aten::relu_": 1}
    assert counts.views >= 3


def test_copies_between_host_and_device_are_no_launches_and_one_within_it_is(xpu):
    host = torch.ones(4)
    with xpu_simulator.count() as counts:
        a = host.to(xpu)
        a.cpu()
    assert counts.launches == 0
    with xpu_simulator.count() as counts:
        a.clone()
    assert counts.launches == counts.d2d == 1


@pytest.mark.parametrize("form", ["foreach", "fused"])
def test_a_whole_model_s_update_is_few_launches(form, xpu):
    def launches(layers):
        model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(layers))).to(xpu)
        optimizer = torch.optim.AdamW(model.parameters(), **{form: True})
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        with xpu_simulator.count() as counts:
            optimizer.step()
        return counts.launches

    assert launches(2) == launches(20) <= (14 if form == "foreach" else 2)


def test_a_list_of_tensors_is_copied_in_one_launch_within_the_device_only(xpu):
    device, host = [torch.ones(3, device=xpu) for _ in range(5)], [torch.zeros(3) for _ in range(5)]
    with xpu_simulator.count() as counts:
        torch._foreach_copy_(device, [tensor * 2 for tensor in device])
    assert counts.launches_by_op["aten::_foreach_copy_"] == 1
    with xpu_simulator.count() as counts:
        torch._foreach_copy_(host, device)
    assert (counts.launches, counts.d2h) == (0, 5)
    assert host[0].tolist() == [2, 2, 2]


def test_copies_to_the_device_are_told_apart_by_memory_and_by_waiting(xpu):
    pageable, pinned = torch.ones(8), torch.ones(8).pin_memory()
    with xpu_simulator.count() as counts:
        pageable.to(xpu)
        pageable.to(xpu, non_blocking=True)
        pinned.to(xpu)
        pinned.to(xpu, non_blocking=True)
        pinned.to(xpu, non_blocking=True)
    assert counts.h2d == {
        ("pageable", "blocking"): 1,
        ("pageable", "non_blocking"): 1,
        ("pinned", "blocking"): 1,
        ("pinned", "non_blocking"): 2,
    }
    assert counts.bytes_h2d == 5 * 32
    assert sum(counts.h2d_lines.values()) == 5
    assert all("test_counters.py" in line for _, line in counts.h2d_lines)


def test_every_wait_is_counted_with_its_kind_and_its_line(xpu):
    a = torch.arange(6.0, device=xpu)
    mask = a > 2
    with xpu_simulator.count() as counts:
        a[0].item()
        float(a[1])
        bool(mask[0])
        a.nonzero()
        a[mask]
        a.cpu()
        torch.xpu.synchronize()
        torch.xpu.current_stream().synchronize()
        event = torch.xpu.Event()
        event.record()
        event.synchronize()
    assert counts.item_syncs == 3
    assert counts.implicit_syncs == 2
    assert (counts.device_syncs, counts.stream_syncs, counts.event_syncs) == (1, 1, 1)
    assert counts.d2h == counts.d2h_by_kind["blocking"] == 1
    kinds = {kind for kind, _ in counts.syncs}
    assert kinds == {
        "item",
        "aten::nonzero",
        "aten::index.Tensor",
        "d2h blocking",
        "device synchronize",
        "stream synchronize",
        "event synchronize",
    }
    here = "test_counters.py"
    function = "test_every_wait_is_counted_with_its_kind_and_its_line"
    assert all(here in line and line.endswith(f" {function}") for _, line in counts.syncs)
    assert sum(counts.syncs.values()) == 9


def test_lines_can_be_attributed_to_a_file(xpu):
    a = torch.ones(3, device=xpu)

    def inner():
        return a.sum().item()

    with xpu_simulator.count(match="test_counters") as counts:
        inner()
    ((_, line),) = counts.syncs
    assert line.endswith(" inner")
    with xpu_simulator.count(match="no such file") as counts:
        inner()
    assert list(counts.syncs) == [("item", "?")]


def test_what_the_backward_pass_waits_for_is_counted_without_a_line(xpu):
    values = torch.ones(4, device=xpu, requires_grad=True)
    loss = values[torch.tensor([True, False, True, True], device=xpu)].sum()
    with xpu_simulator.count() as counts:
        loss.backward()
    assert counts.syncs == {("aten::_index_put_impl_", "backward"): 1}


def test_setting_by_a_mask_waits_only_where_hardware_does(xpu):
    a = torch.arange(6.0, device=xpu)
    with xpu_simulator.count() as counts:
        a.masked_fill_(a > 2, 0)
        a.index_put_((a > 2,), torch.tensor(0.0))
    assert counts.implicit_syncs == 0
    with xpu_simulator.count() as counts:
        a[a > 2] = a[a > 2]
    assert counts.implicit_syncs == 2


def test_indices_from_the_host_are_a_copy(xpu):
    a = torch.arange(6.0, device=xpu)
    with xpu_simulator.count() as counts:
        a[torch.tensor([0, 3])]
    assert counts.h2d["pageable", "blocking"] == 1


def test_float64_kernels_are_named(xpu):
    with xpu_simulator.count() as counts:
        (torch.ones(3, device=xpu).double() * 2).float()
    assert counts.float64_kernels == {"aten::copy_": 2, "aten::mul.Tensor": 1}


def test_counting_blocks_nest(xpu):
    a = torch.ones(3, device=xpu)
    with xpu_simulator.count() as outer:
        a + 1
        with xpu_simulator.count() as inner:
            a + 1
            a.tolist()
        a.sum().item()
    assert (outer.launches, inner.launches) == (3, 1)
    assert [kind for kind, _ in outer.syncs] == ["item"]


def test_the_counters_can_be_read_and_reset_at_any_time(xpu):
    xpu_simulator.counters.reset()
    torch.ones(3, device=xpu).sum()
    assert xpu_simulator.counters.read().launches == 2
    xpu_simulator.counters.reset()
    assert xpu_simulator.counters.read().launches == 0


def test_a_process_reports_at_its_end(tmp_path):
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", "XPU_SIMULATOR_REPORT": str(tmp_path / "report.json")}
    code = "import torch; torch.ones(3, device='xpu').sum().item()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("report.")
    report = json.loads(path.read_text())
    assert report["launches"] == 2
    assert report["item_syncs"] == 1
    assert report["h2d"]["pageable blocking"] == 0


@pytest.mark.parametrize("form", ["foreach", "fused"])
def test_kernels_over_lists_have_two_copies_and_two_barriers_each(form, xpu):
    parameters = [torch.nn.Parameter(torch.ones(4, device=xpu)) for _ in range(5)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(parameters, momentum=0.9, **{form: True})
    optimizer.step()
    with xpu_simulator.count() as counts:
        optimizer.step()
    assert counts.launches > 0
    assert counts.metadata_copies == counts.barriers == 2 * counts.launches
    assert sum(counts.h2d.values()) == 0


def test_a_copy_to_the_device_is_a_barrier_unless_it_blocks(xpu):
    pageable, pinned = torch.ones(8), torch.ones(8).pin_memory()
    with xpu_simulator.count() as counts:
        for host in (pageable, pinned):
            host.to(xpu)
            host.to(xpu, non_blocking=True)
    assert (counts.barriers, counts.metadata_copies) == (2, 0)


def test_a_pageable_copy_that_doesn_t_block_is_no_wait(xpu):
    with xpu_simulator.count() as counts:
        torch.ones(8).to(xpu, non_blocking=True)
    assert not counts.syncs


def test_convolutions_are_compiled_once_for_each_shape_type_and_layout(xpu):
    layer = torch.nn.Conv2d(4, 8, 3).to(xpu)
    image = torch.rand(2, 4, 8, 8, device=xpu, requires_grad=True)
    with xpu_simulator.count() as counts:
        layer(image).sum().backward()
    assert counts.primitive_misses == 3  # forwards, and a gradient each of image and weight
    assert counts.compile_seconds > 0
    with xpu_simulator.count() as counts:
        layer(image).sum().backward()
    assert (counts.primitive_misses, counts.primitive_hits) == (0, 3)
    for other in (image[:1], image[..., 1:], image.contiguous(memory_format=torch.channels_last)):
        with torch.no_grad(), xpu_simulator.count() as counts:
            layer(other)
        assert counts.primitive_misses == 1
    with torch.no_grad(), torch.autocast("xpu", torch.bfloat16), xpu_simulator.count() as counts:
        layer(image)
    assert counts.primitive_misses == 1


@pytest.mark.parametrize(("capacity", "misses"), [(None, 0), ("3", 4)])
def test_the_least_recently_used_kernel_is_compiled_again(capacity, misses, xpu, monkeypatch):
    if capacity:
        monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", capacity)
    with xpu_simulator.use_profile("arc-b580"):
        products = [torch.rand(n, n, device=xpu) for n in range(2, 6)]
        for _ in range(2):
            with xpu_simulator.count() as counts:
                for product in products:
                    product @ product
    assert (counts.primitive_misses, counts.primitive_hits) == (misses, 4 - misses)


@pytest.fixture
def deterministic(monkeypatch):
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def test_uninitialized_memory_is_filled_in_deterministic_mode_by_a_kernel(xpu, deterministic):
    with xpu_simulator.count() as counts:
        made = [
            torch.empty(3, device=xpu),
            torch.empty_strided((2, 2), (1, 2), device=xpu),
            torch.empty_like(torch.ones(2, device=xpu)),
        ]
    assert counts.launches == len(made) + 2  # and one made of ones, first filled
    assert all(each.isnan().all().item() for each in made)
    assert torch.empty(2, dtype=torch.long, device=xpu).tolist() == [torch.iinfo(torch.long).max] * 2
    torch.utils.deterministic.fill_uninitialized_memory = False
    with xpu_simulator.count() as counts:
        torch.empty(3, device=xpu)
    assert counts.launches == 0


def test_the_time_of_kernels_and_copies_is_told_from_the_hosts(xpu):
    a = torch.randn(700, 700, device=xpu)
    with xpu_simulator.count() as counts:
        began = time.perf_counter()
        for _ in range(3):
            a @ a
        busy = time.perf_counter() - began
        a.view(-1)
        time.sleep(0.1)
    assert 0.1 * busy < counts.kernel_seconds <= busy
