"""Modules as users write them, each around the first layer of a YOLO: some of them count on NCHW."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional
from torch import nn
from ultralytics.nn.tasks import DetectionModel


class Around(nn.Module):
    """A layer in the place of another, whose output it changes."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.i, self.f, self.type, self.np = inner.i, inner.f, inner.type, inner.np
        self.channels = inner.conv.out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self.inner(x))

    def change(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class ViewAfterPooling(Around):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.gate = nn.Linear(4 * self.channels, self.channels)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x, 2).view(x.shape[0], -1)
        return x * self.gate(pooled).sigmoid()[..., None, None]


class FlattenAndLinear(ViewAfterPooling):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return x * self.gate(pooled).sigmoid()[..., None, None]


class ParameterView(Around):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.kernels = nn.Parameter(torch.rand(2, 3, 4, 5))

    def change(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.kernels.view(-1).mean()


class PositionalEmbedding(Around):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.position = nn.Parameter(torch.rand(1, self.channels, 4, 4))

    def change(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.interpolate(self.position, x.shape[2:])


class Shuffle(Around):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class AssertsContiguous(Around):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        assert x.is_contiguous(), "a kernel of mine takes NCHW only"
        return x


class CountsOnStrides(Around):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        if x.stride(1) != x.shape[2] * x.shape[3]:
            raise ValueError(f"strides {x.stride()}")
        return x


class OwnStrides(Around):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        return x.as_strided((b, c, h, w // 2), (x.stride(0), x.stride(1), x.stride(2), 2 * x.stride(3))).repeat(
            1, 1, 1, 2
        )


class OrderInMemory(Around):
    """Computes something else, without an error, where memory is in another order."""

    def change(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        return x + x.as_strided((b, c, 1, 1), (c * h * w, h * w, 1, 1))


class ViewOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.shape = x.shape
        return x.view(x.shape[0], -1) * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.reshape(ctx.shape) * 2


class ViewOfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return (gradient.view(-1) * 2).view(gradient.shape)


class GradientInMemory(torch.autograd.Function):
    """Has another gradient, without an error, where memory is in another order."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.as_strided(gradient.shape, torch.empty(gradient.shape, device="meta").stride()) * 2


class FunctionWithView(Around):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        return ViewOf.apply(x).reshape(x.shape)


class FunctionWithViewBackward(Around):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        return ViewOfGradient.apply(x)


class FunctionWithOtherGradient(Around):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        return GradientInMemory.apply(x)


class OwnConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight.view(self.weight.shape[0], -1).norm(dim=1).view(-1, 1, 1, 1)
        return nn.functional.conv2d(x, self.weight / scale, self.bias, padding=1)


class HasOwnConv(Around):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.conv = OwnConv(self.channels, self.channels, 3, padding=1)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class UpAndDown(Around):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.up = nn.ConvTranspose2d(self.channels, self.channels, 2, 2)
        self.down = nn.Conv2d(self.channels, self.channels, 2, 2)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x))


class ViewInValidation(Around):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else x.view(x.shape[0], -1).reshape(x.shape)


class Complex(Around):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.phases = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    def change(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.phases.abs().mean()


class Remembers(Around):
    """Counts its calls, keeps a list and a running mean, draws random numbers, and clamps a weight."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.calls = 0
        self.seen: list[float] = []
        self.mean = torch.zeros(1)
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self.register_buffer("steps", torch.zeros(1))
        self.dropout = nn.Dropout(0.5)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            self.seen.append(float(x.detach().mean()))
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean().cpu())
            self.steps += 1
            self.scale.data.mul_(0.5)
        factor = self.scale + self.calls + self.steps + self.mean.to(x.device) + torch.rand(1, device=x.device)
        return (self.dropout(x) * factor).to(x.dtype)


class RememberingViews(Remembers):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        return super().change(x.view(x.shape[0], -1).view(x.shape))


class OwnLoss(DetectionModel):
    """A model whose loss views the images, as one of reconstruction does."""

    def loss(self, batch: Any, preds: Any = None) -> Any:
        total, items = super().loss(batch, preds)
        images = batch["img"].view(len(batch["img"]), -1)
        return total * (1 + images.mean()), items


# Where hooks collect what layers give, as distillation does


class Collector:
    def __init__(self) -> None:
        self.outputs: list[torch.Tensor] = []

    def note(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        self.outputs.append(output)


class Distillation:
    def __init__(self) -> None:
        self.student = Collector()


COLLECTOR = Collector()


def note_globally(module: nn.Module, args: Any, output: torch.Tensor) -> None:
    COLLECTOR.outputs.append(output)


def in_a_closure() -> tuple[Any, list[torch.Tensor]]:
    collected: list[torch.Tensor] = []

    def note(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        collected.append(output)

    return note, collected


def in_an_object() -> tuple[Any, list[torch.Tensor]]:
    collector = Collector()
    return collector.note, collector.outputs


def in_a_global() -> tuple[Any, list[torch.Tensor]]:
    COLLECTOR.outputs.clear()
    return note_globally, COLLECTOR.outputs


def behind_a_function() -> tuple[Any, list[torch.Tensor]]:
    distillation = Distillation()

    def keep(output: torch.Tensor) -> None:
        distillation.student.outputs.append(output)

    return functools.partial(_keep_by, keep), distillation.student.outputs


def _keep_by(keep: Any, module: nn.Module, args: Any, output: torch.Tensor) -> None:
    keep(output)
