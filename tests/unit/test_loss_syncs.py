"""Targets padded by counts taken on the host."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("images", [1, 3, 8])
def test_targets_are_padded_as_ultralytics_pads_them(xpu: torch.device, images: int) -> None:
    from types import SimpleNamespace

    from ultralytics.utils.loss import v8DetectionLoss

    import xpu_simulator
    from yolo_xpu_trainer import devices
    from yolo_xpu_trainer.policies import loss_syncs
    from yolo_xpu_trainer.run import Precision, Run

    run = Run(devices.info(0), (0,), Precision("fp32", "the test says so"))
    generator = torch.Generator().manual_seed(images)
    for total in (1, 2, 7, 40):
        index = torch.randint(images, (total,), generator=generator).sort().values
        targets = torch.cat((index[:, None].float(), torch.rand(total, 5, generator=generator)), 1)
        scale = torch.tensor([640.0, 480.0, 640.0, 480.0], device=xpu)
        loss = SimpleNamespace(device=xpu)
        moved = targets.to(xpu)
        loss_syncs._remember(run, moved, total, int(index.bincount().max()))
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
