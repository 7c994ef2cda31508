"""A stand-in for OpenAI's CLIP, which is no package of PyPI's: random features that depend on the text alone."""

from __future__ import annotations

import sys

import torch
from torch import nn

clip = sys.modules[__name__]  # `clip.clip` is CLIP's own module of that name


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> torch.Tensor:
    """Return a token for each character."""
    texts = [texts] if isinstance(texts, str) else texts
    rows = [[ord(letter) % 49408 for letter in text[:context_length]] for text in texts]
    return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])


class Encoders(nn.Module):
    """Both encoders, as CLIP's model names them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(49408, 512)
        self.patch = nn.Conv2d(3, 512, 32, 32)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embedding(tokens).mean(1)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.patch(images).flatten(2).mean(2)


def load(name: str, device: object = "cpu", **kwargs: object) -> tuple[nn.Module, object]:
    """Return a model and what prepares an image for it."""
    from torchvision.transforms import Compose, Resize, ToTensor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Encoders()
    return model.to(device).eval(), Compose([Resize((224, 224)), ToTensor()])
