"""Training on `xpu` gives what training on `cpu` gives, with every optimizer and precision, at about its cost."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

OPTIMIZERS = {
    "SGD": lambda p, **kw: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01, **kw),
    "Adam": lambda p, **kw: torch.optim.Adam(p, lr=0.01, **kw),
    "AdamW": lambda p, **kw: torch.optim.AdamW(p, lr=0.01, **kw),
    "Adagrad": lambda p, **kw: torch.optim.Adagrad(p, lr=0.01, **kw),
    "Adamax": lambda p, **kw: torch.optim.Adamax(p, lr=0.01, **kw),
    "NAdam": lambda p, **kw: torch.optim.NAdam(p, lr=0.01, **kw),
    "RAdam": lambda p, **kw: torch.optim.RAdam(p, lr=0.01, **kw),
    "RMSprop": lambda p, **kw: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, **kw),
    "Rprop": lambda p, **kw: torch.optim.Rprop(p, lr=0.01, **kw),
    "Adadelta": lambda p, **kw: torch.optim.Adadelta(p, lr=0.1, **kw),
    "ASGD": lambda p, **kw: torch.optim.ASGD(p, lr=0.01, **kw),
}
FORMS = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")


def _network(device, width=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, groups=width),
        nn.BatchNorm2d(2 * width),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 5),
    ).to(device)


def _batches(device, n=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        images = torch.randn(4, 3, 16, 16, generator=generator)
        yield images.to(device), torch.randint(0, 5, (4,), generator=generator).to(device)


def _losses(device, make_optimizer, dtype=None, **kwargs):
    network = _network(device)
    optimizer = make_optimizer(network.parameters(), **kwargs)
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0, enabled=dtype == torch.float16)
    losses = []
    for images, targets in _batches(device):
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = functional.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


@pytest.mark.xpu_hardware
@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in OPTIMIZERS for form in FORMS if form != "fused" or name in FUSED]
)
def test_an_optimizer_takes_the_cpu_s_steps(name, form, xpu):
    on_device = _losses(xpu, OPTIMIZERS[name], **FORMS[form])
    on_host = _losses(torch.device("cpu"), OPTIMIZERS[name], foreach=False)
    assert on_device == pytest.approx(on_host, rel=1e-3)


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_near_full_precision(dtype, xpu):
    full = _losses(xpu, OPTIMIZERS["SGD"])
    assert _losses(xpu, OPTIMIZERS["SGD"], dtype) == pytest.approx(full, rel=0.05)


@pytest.mark.xpu_hardware
def test_autocast_is_to_half_precision_by_default(xpu):
    assert torch.get_autocast_dtype("xpu") == torch.float16
    a = torch.ones(2, 2, device=xpu)
    with torch.autocast("xpu"):
        assert (a @ a).dtype == torch.float16
        assert functional.softmax(a @ a, -1).dtype == torch.float32
    with torch.autocast("xpu", torch.bfloat16):
        assert functional.conv2d(a[None, None], a[None, None]).dtype == torch.bfloat16


@pytest.mark.xpu_hardware
def test_grad_scaler_skips_a_step_that_overflowed(xpu):
    weight = torch.ones(2, device=xpu, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("xpu")
    before = scaler.get_scale()
    scaler.scale((weight * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [1, 1]
    assert scaler.get_scale() == before / 2


def test_gradients_equal_the_cpu_s_to_the_last_bit(xpu):
    gradients = []
    for device in (torch.device("cpu"), xpu):
        network = _network(device)
        images, targets = next(_batches(device))
        functional.cross_entropy(network(images), targets).backward()
        gradients.append([parameter.grad.cpu() for parameter in network.parameters()])
    assert all(torch.equal(host, device) for host, device in zip(*gradients, strict=True))


def test_synchronized_batch_norm_of_one_process_is_batch_norm(xpu):
    torch.manual_seed(0)
    given = torch.randn(4, 3, 5, 5)
    host = given.clone().requires_grad_()
    expected = functional.batch_norm(host, None, None, training=True)
    expected.square().sum().backward()
    device = given.to(xpu)
    mean, invstd = torch.batch_norm_stats(device, 1e-5)
    result = torch.batch_norm_elemt(device, None, None, mean, invstd, 1e-5)
    torch.testing.assert_close(result.cpu(), expected.detach())
    gradient = 2 * result
    sums = torch.batch_norm_backward_reduce(gradient, device, mean, invstd, None, True, False, False)[:2]
    count = torch.tensor([100], dtype=torch.int32, device=xpu)
    back = torch.batch_norm_backward_elemt(gradient, device, mean, invstd, None, *sums, count)
    torch.testing.assert_close(back.cpu(), host.grad, atol=1e-4, rtol=1e-4)


def test_a_training_step_costs_at_most_half_as_much_again_as_on_the_cpu(xpu):
    """The fastest of interleaved steps, which a machine that is busy with other work disturbs least."""
    from ultralytics.nn.tasks import DetectionModel

    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(16, 4, generator=generator) * 0.4 + 0.3
    batch = {
        "img": torch.rand(4, 3, 64, 64, generator=generator),
        "batch_idx": torch.arange(4.0).repeat_interleave(4),
        "cls": torch.zeros(16, 1),
        "bboxes": boxes,
    }
    devices = (torch.device("cpu"), xpu)
    models = {device: DetectionModel("yolo11n.yaml", nc=3, verbose=False).to(device).train() for device in devices}
    for model in models.values():
        model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    optimizers = {device: torch.optim.SGD(models[device].parameters(), lr=0.01) for device in devices}
    seconds = {device: [] for device in devices}
    for _ in range(15):
        for device in devices:
            start = time.perf_counter()
            models[device]({k: v.to(device) for k, v in batch.items()})[0].sum().backward()
            optimizers[device].step()
            optimizers[device].zero_grad()
            seconds[device].append(time.perf_counter() - start)
    host, device = (min(seconds[device][3:]) for device in devices)
    assert device / host < 1.5, f"{device / host:.2f} times as long as on the CPU"
