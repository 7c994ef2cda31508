"""Parts of the loss that need no sync: the foreground mask, and targets padded by counts taken on the host."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("shape", [(6, 4), (1, 7), (5,)])
def test_a_foreground_mask_answers_as_a_plain_one(xpu: torch.device, shape: tuple[int, ...]) -> None:
    from yolo_xpu_trainer.policies.foreground import ForegroundMask

    generator = torch.Generator().manual_seed(0)
    plain = (torch.rand(shape, generator=generator) > 0.6).to(xpu)
    values = torch.rand(*shape, 3, generator=generator).to(xpu)
    mask = ForegroundMask.of(plain)
    assert torch.equal(values[mask], values[plain])
    assert torch.equal(values[..., 0][mask], values[..., 0][plain])
    assert torch.equal(values[mask, 1], values[plain, 1])
    assert bool(mask.any()) == bool(plain.any())
    assert int(mask.sum()) == int(plain.sum())
    assert torch.equal(7 / mask.sum(), 7 / plain.sum())
    assert torch.equal(mask.sum(-1), plain.sum(-1))
    assert all(
        torch.equal(a, b) for a, b in zip(mask.nonzero(as_tuple=True), plain.nonzero(as_tuple=True), strict=True)
    )
    assert torch.equal(mask.nonzero(), plain.nonzero())
    assert type(mask.float()) is torch.Tensor
    assert type(~mask) is torch.Tensor
    for mine, theirs in zip(mask, plain, strict=True):
        assert torch.equal(mine, theirs)
        if theirs.dim():
            assert bool(mine.any()) == bool(theirs.any())
    mine, theirs = values.clone(), values.clone()
    mine[mask], theirs[plain] = 2.0, 2.0
    assert torch.equal(mine, theirs)
    for index in (plain, mask):
        leaf = values.clone().requires_grad_()
        (leaf[index] ** 2).sum().backward()
        assert leaf.grad is not None
        assert torch.equal(leaf.grad[plain], 2 * values[plain])
        assert not leaf.grad[~plain].any()
    mask.view(-1)[0] = ~plain.view(-1)[0].clone()  # its positions were known
    assert torch.equal(values[mask], values[plain])


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
