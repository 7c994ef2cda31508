"""Stands where Ultralytics finds its text encoders: CLIP's package `clip`, and MobileCLIP's TorchScript file.

Both are downloads of more than 100 MB. Only what is downloaded is replaced: Ultralytics' own code loads and calls them,
on the run's device. This module is what `import clip` gives, in a test's process or, copied, in one that it starts.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


def tokenize(texts: str | list[str], truncate: bool = True) -> torch.Tensor:
    """Number a text's characters, as CLIP's tokenizer numbers its words."""
    texts = [texts] if isinstance(texts, str) else texts
    return torch.tensor([[*map(ord, text[:77].ljust(77))] for text in texts])


class Encoder(nn.Module):
    """A text encoder of CLIP's shapes: tokens in, a unit vector of 512 numbers for each text out."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # each process that makes one makes the same
            self.embedding = nn.Embedding(128, 512)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.embedding(tokens).mean(1), dim=-1)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.forward(tokens)


def load(size: str, device: Any, download_root: str | None = None) -> tuple[nn.Module, None]:
    """Return what `clip.load` does: an encoder on a device, and no way to prepare images."""
    return Encoder().to(device), None


clip = SimpleNamespace(tokenize=tokenize)


def write_mobileclip(directory: Path) -> None:
    """Write MobileCLIP's file where Ultralytics looks for it before it downloads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and what Ultralytics loads here
        torch.jit.trace(Encoder(), tokenize(["two", "texts"])).save(str(directory / "mobileclip_blt.ts"))
