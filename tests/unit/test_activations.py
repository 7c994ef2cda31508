"""SiLU computes what it computes in place, with a kernel less in training."""

from __future__ import annotations

import torch

import xpu_simulator
from yolo_xpu_trainer import Precision, Run, devices
from yolo_xpu_trainer.policies.activations import _NEVER, silu


def options_run() -> Run:
    return Run(devices.info(0), (0,), Precision("fp32", "of a test"))


def test_in_training_the_input_stays_and_nothing_is_copied(xpu: torch.device) -> None:
    forward = silu.replacement(options_run(), torch.nn.SiLU.forward)
    results = []
    for function, launches in ((torch.nn.SiLU.forward, 2), (forward, 1)):
        x = torch.linspace(-3, 3, 100, device=xpu).requires_grad_()
        features = x * 1
        with xpu_simulator.count() as counts:
            out = function(torch.nn.SiLU(inplace=True), features)
        assert counts.launches == launches
        out.sum().backward()
        results.append((out.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_without_gradients_it_is_in_place_as_asked(xpu: torch.device) -> None:
    x = torch.linspace(-3, 3, 100, device=xpu)
    forward = silu.replacement(options_run(), torch.nn.SiLU.forward)
    assert forward(torch.nn.SiLU(inplace=True), x) is x
    y = torch.linspace(-3, 3, 100, device=xpu)
    assert forward(torch.nn.SiLU(), y) is not y


def test_users_code_finds_its_input_changed_as_before(xpu: torch.device) -> None:
    run = options_run()
    run.stash[_NEVER] = True
    features = torch.linspace(-3, 3, 100, device=xpu).requires_grad_() * 1
    assert silu.replacement(run, torch.nn.SiLU.forward)(torch.nn.SiLU(inplace=True), features) is features
