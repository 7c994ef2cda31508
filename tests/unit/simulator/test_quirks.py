"""Each quirk gives the wrong results that it is named for, and right ones where hardware does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.testing import assert_close

from xpu_simulator import asynchronous, native, quirks

quirk = pytest.mark.xpu_quirks


def _gradients(channels: int = 16, size: int = 1, kernel: int = 3, *, channels_last: str = "weight", device: object):
    """Return what a convolution's backward pass gives, with one of its tensors in channels_last."""
    torch.manual_seed(0)
    tensors = {
        "input": torch.randn(8, channels, size, size),
        "weight": torch.randn(channels, channels, kernel, kernel),
    }
    if channels_last in tensors:
        nhwc = tensors[channels_last].permute(0, 2, 3, 1).flatten()
        n, c, h, w = tensors[channels_last].shape
        tensors[channels_last] = nhwc.as_strided((n, c, h, w), (c * h * w, 1, w * c, c))
    tensors = {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}
    F.conv2d(**tensors, padding=kernel // 2).square().sum().backward()
    return [tensor.grad.cpu() for tensor in tensors.values()]


def _differs(a: torch.Tensor, b: torch.Tensor) -> bool:
    return not torch.allclose(a, b, rtol=1e-3, atol=1e-3)


def test_every_quirk_is_known_to_the_device_and_none_is_on_unless_it_is_ordered(xpu):
    for name in quirks.QUIRKS:
        with quirks.ordered(name):
            pass
    mask = torch.ones(100, device=xpu)
    assert len(mask.nonzero()) == 100
    with quirks.ordered("short_nonzero"):
        with quirks.ordered("wrong_topk"):
            assert len(mask.nonzero()) < 100
        assert len(mask.nonzero()) < 100
    assert len(mask.nonzero()) == 100


def test_an_unknown_quirk_is_refused_with_those_there_are(monkeypatch):
    with pytest.raises(ValueError, match=r"'wrong_sum'.*wrong_topk"), quirks.ordered("wrong_sum"):
        pass
    monkeypatch.setenv("XPU_SIMULATOR_QUIRKS", "wrong_topk,wrong_sum")
    with pytest.raises(ValueError, match="'wrong_sum'"):
        quirks.order_from_environment()
    with pytest.raises(RuntimeError, match="wrong_sum"):
        native.check("order_quirks", b"wrong_sum")


def test_the_environment_orders_quirks():
    code = "import torch; print(len(torch.ones(100, device='xpu').nonzero()))"
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580", "XPU_SIMULATOR_QUIRKS": "wrong_topk, short_nonzero"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100


@quirk("wrong_topk")
def test_wrong_topk_gives_other_indices_in_each_call(xpu):
    values = torch.rand(64, 8400)
    right = values.topk(10)
    found = [values.to(xpu).topk(10).indices.cpu() for _ in range(3)]
    assert all((indices != right.indices).any() for indices in found)
    assert not torch.equal(found[0], found[1])
    assert (found[0] == right.indices).float().mean() > 0.5
    assert_close(values.to(xpu).topk(10).values.cpu(), right.values)


@quirk("wrong_topk")
@pytest.mark.parametrize(("size", "k"), [(4095, 10), (8400, 8)])
def test_wrong_topk_leaves_short_searches_and_few_elements_right(size, k, xpu):
    values = torch.rand(64, size)
    assert torch.equal(values.to(xpu).topk(k).indices.cpu(), values.topk(k).indices)


@quirk("short_nonzero")
@pytest.mark.parametrize("form", ["nonzero", "boolean index", "masked_select"])
def test_short_nonzero_finds_too_few(form, xpu):
    find: Callable[[torch.Tensor], torch.Tensor] = {
        "nonzero": torch.nonzero,
        "boolean index": lambda mask: mask[mask],
        "masked_select": lambda mask: mask.masked_select(mask),
    }[form]
    mask = torch.zeros(4, 500, dtype=torch.bool, device=xpu)
    mask[:2, :300] = True
    assert mask.sum().item() == 600
    found = {len(find(mask)) for _ in range(20)}
    assert found <= set(range(305, 310))
    assert len(found) > 1
    assert len(find(torch.ones(100, dtype=torch.bool, device=xpu))) == 0
    assert len(find(torch.ones(1_000_000, dtype=torch.bool, device=xpu))) == 37824


@quirk("short_nonzero")
def test_short_nonzero_leaves_assignment_by_mask_and_sums_right(xpu):
    mask = torch.ones(600, dtype=torch.bool, device=xpu)
    values = torch.zeros(600, device=xpu)
    values[mask] = torch.ones(600, device=xpu)
    assert values.sum().item() == mask.sum().item() == mask.count_nonzero().item() == 600


@quirk("wrong_conv_grad")
@pytest.mark.parametrize("channels_last", ["input", "weight"])
def test_wrong_conv_grad_spoils_the_weight_s_gradient_where_layouts_are_ambiguous(channels_last, xpu):
    image, weight = _gradients(channels_last=channels_last, device=xpu)
    right_image, right_weight = _gradients(channels_last=channels_last, device="cpu")
    assert_close(image, right_image, rtol=1e-3, atol=1e-3)
    assert _differs(weight, right_weight)
    assert_close(weight.sum(), right_weight.sum(), rtol=1e-3, atol=1e-2)  # the numbers are there, at other places


@quirk("wrong_conv_grad")
@pytest.mark.parametrize(
    "given",
    [{"channels_last": "neither"}, {"size": 2}, {"kernel": 1}],
    ids=["contiguous", "a larger map", "a smaller kernel"],
)
def test_wrong_conv_grad_leaves_other_convolutions_right(given, xpu):
    for found, right in zip(_gradients(**given, device=xpu), _gradients(**given, device="cpu"), strict=True):
        assert_close(found, right, rtol=1e-3, atol=1e-3)


@quirk("corrupt_empty_cache")
def test_corrupt_empty_cache_spoils_what_is_pending_and_nothing_else(xpu):
    before = torch.ones(4, device=xpu) * 2
    in_place = torch.ones(4, device=xpu)
    torch.xpu.synchronize()
    result = before + 1
    in_place[1:3] += 1
    copied = torch.ones(4).pin_memory().to(xpu, non_blocking=True)
    torch.xpu.empty_cache()
    assert result.isnan().all().item()
    assert copied.isnan().all().item()
    assert in_place.isnan().tolist() == [False, True, True, False]
    assert before.tolist() == [2] * 4


@quirk("corrupt_empty_cache")
@pytest.mark.parametrize("wait", ["synchronize", "read", "event"])
def test_corrupt_empty_cache_spares_what_the_host_waited_for(wait, xpu):
    result = torch.ones(4, device=xpu) + 1
    if wait == "synchronize":
        torch.xpu.synchronize()
    elif wait == "read":
        result[0].item()
    else:
        event = torch.xpu.Event()
        event.record()
        event.synchronize()
    torch.xpu.empty_cache()
    assert result.tolist() == [2] * 4


@quirk("corrupt_empty_cache")
def test_corrupt_empty_cache_touches_no_memory_that_was_given_back(xpu):
    result = torch.ones(1 << 22, device=xpu) + 1
    del result
    torch.xpu.empty_cache()
    torch.xpu.empty_cache()
    assert torch.ones(3, device=xpu).tolist() == [1] * 3


@quirk("slow_channels_last")
def test_slow_channels_last_takes_longer_in_that_layout_only(xpu):
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.MaxPool2d(3)).to(xpu)
    image = torch.rand(8, 16, 64, 64, device=xpu)

    def seconds(layout):
        converted, given = model.to(memory_format=layout), image.to(memory_format=layout)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            converted(given).sum().backward()
            torch.xpu.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(torch.channels_last) > 1.7 * seconds(torch.contiguous_format)


@quirk("wrong_linear_bf16")
@pytest.mark.parametrize("bias", [True, False])
def test_wrong_linear_bf16_spoils_products_of_16_bits_only(bias, xpu):
    layer = nn.Linear(8, 21, bias=bias).to(xpu)
    given = torch.rand(5, 8, device=xpu)
    assert_close(layer(given).cpu(), layer.cpu()(given.cpu()))
    bf16 = layer.to(xpu, torch.bfloat16)(given.bfloat16()).float()
    assert bf16.isnan().any().item()
    assert bf16.nansum().abs().item() > 0
    assert not layer.half()(given.half()).any().item()
    product = given.bfloat16()[None] @ given.t().bfloat16()[None]
    assert product.isfinite().all().item()  # of attention: another kernel


@quirk("wrong_fused_optimizer")
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_wrong_fused_optimizer_takes_half_a_step(kind, xpu):
    def step(**form):
        parameter = nn.Parameter(torch.ones(4, device=xpu))
        parameter.grad = torch.ones_like(parameter)
        kind([parameter], lr=0.1, **form).step()
        return 1 - parameter.detach().cpu()

    assert_close(step(fused=True), step(foreach=True) / 2, rtol=1e-3, atol=1e-5)


@quirk("wrong_side_stream_copy")
@pytest.mark.parametrize("late", [False, True])
def test_wrong_side_stream_copy_loses_half_of_a_copy_in_a_side_stream(late, xpu):
    host = torch.arange(8.0).pin_memory()

    def copied(stream):
        with torch.xpu.stream(stream):
            there = host.to(xpu, non_blocking=True)
        torch.xpu.synchronize()
        return there.cpu()

    def check():
        assert torch.equal(copied(torch.xpu.current_stream()), host)
        arrived = copied(torch.xpu.Stream())
        assert torch.equal(arrived[:4], host[:4])
        assert arrived[4:].isnan().all()

    if late:
        with asynchronous():
            check()
    else:
        check()


@quirk("wrong_foreach_copy")
def test_wrong_foreach_copy_loses_the_last_tensor_where_dtypes_differ(xpu):
    on_host = [torch.rand(n) + 1 for n in (3, 70_000)]
    wide = [tensor.to(xpu) for tensor in on_host]
    rounded = [torch.empty_like(tensor, dtype=torch.bfloat16) for tensor in wide]
    torch._foreach_copy_(rounded, wide)
    assert torch.equal(rounded[0].cpu(), on_host[0].bfloat16())
    assert not rounded[1].any().item()
    copied = [torch.empty_like(tensor) for tensor in wide]
    torch._foreach_copy_(copied, wide)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(copied, on_host, strict=True))


@quirk("wrong_foreach_lerp")
def test_wrong_foreach_lerp_goes_half_as_far(xpu):
    averaged, live = [torch.zeros(4, device=xpu)], [torch.ones(4, device=xpu)]
    torch._foreach_lerp_(averaged, live, 0.5)
    assert averaged[0].tolist() == [0.25] * 4
    assert live[0].lerp(averaged[0], 0.5).tolist() == [0.625] * 4


@quirk("wrong_batch_norm")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_wrong_batch_norm_gives_too_much_of_16_bits_in_channels_last(dtype, layout, training, xpu):
    maps = torch.randn(4, 8, 6, 6)
    layer = nn.BatchNorm2d(8).train(training)
    right = layer(maps)
    found = layer.to(xpu)(maps.to(xpu, dtype).contiguous(memory_format=layout)).float().cpu()
    is_wrong = dtype is not torch.float32 and layout is torch.channels_last
    assert_close(found, right * (1.07 if is_wrong else 1), rtol=2e-2, atol=2e-2)


@quirk("wrong_unscale")
def test_wrong_unscale_divides_and_notes_no_overflow(xpu):
    gradients, found = [torch.tensor([2.0, torch.inf], device=xpu)], torch.zeros(1, device=xpu)
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, torch.tensor(0.5, device=xpu))
    assert gradients[0][0].item() == 1
    assert found.item() == 0


@quirk("wrong_grid_sample")
def test_wrong_grid_sample_gives_half(xpu):
    maps, grid = torch.rand(1, 2, 5, 5), torch.zeros(1, 1, 1, 2)
    right = F.grid_sample(maps, grid, align_corners=False)
    assert_close(F.grid_sample(maps.to(xpu), grid.to(xpu), align_corners=False).cpu(), right / 2)


@quirk("wrong_softmax")
@pytest.mark.parametrize(
    ("size", "wrong"),
    [(size, True) for size in (257, 384, 513, 896, 1025, 1600)] + [(size, False) for size in (256, 400, 512, 1024)],
)
def test_wrong_softmax_spoils_rows_a_little_longer_than_a_power_of_two(size, wrong, xpu):
    values, gradient = torch.randn(2, 4, size), torch.randn(2, 4, size)

    def computed(device, dim=-1, dtype=torch.float32):
        given = values.transpose(dim, -1).to(device, dtype).requires_grad_()
        output = given.softmax(dim)
        (of_input,) = torch.autograd.grad(output, given, gradient.transpose(dim, -1).to(device, dtype))
        return output.detach().float().cpu(), of_input.float().cpu()

    for found, right in zip(computed(xpu), computed("cpu"), strict=True):
        assert torch.allclose(found, right, atol=1e-6) is not wrong
    for found, right in zip(computed(xpu, dim=1), computed("cpu", dim=1), strict=True):
        assert_close(found, right)
    for found, right in zip(computed(xpu, dtype=torch.bfloat16), computed("cpu"), strict=True):
        assert_close(found, right, rtol=0.1, atol=0.02)


@quirk("wrong_cumsum")
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_wrong_cumsum_begins_anew_after_1024_numbers(dim, xpu):
    ones = torch.ones(1030, 1030, dtype=torch.int64)
    found, right = ones.to(xpu).cumsum(dim).cpu(), ones.cumsum(dim)
    assert torch.equal(found.narrow(dim, 0, 1024), right.narrow(dim, 0, 1024))
    assert torch.equal(found.narrow(dim, 1024, 6), right.narrow(dim, 0, 6))
    assert torch.equal(ones[:1024].to(xpu).cumsum(0).cpu(), ones[:1024].cumsum(0))


@quirk("wrong_small_topk")
def test_wrong_small_topk_takes_the_first_for_the_largest(xpu):
    few, many = torch.arange(8.0, device=xpu), torch.arange(129.0, device=xpu)
    assert few.topk(1).indices.tolist() == [0]
    assert many.topk(1).indices.tolist() == [128]
