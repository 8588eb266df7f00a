"""What the tests of fine-tuning share: a small data set, a tiny network with blocks, batch norm and patch tokens."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401
import numpy as np
import pandas as pd
import peft  # noqa: F401
import torch
from encoder_helpers import randomised
from PIL import Image
from torch import nn

from medprobe.encoders.base import Card, Encoder, Preprocess, flat_tokens
from medprobe.images.geometry import Geometry

SIZE = 32

gc.freeze()  # every training ends with a collection, which need not look at what the imports have left


class TinyNetwork(nn.Module):
    """A stem with batch norm and drop-out, three blocks, and a norm after them; ``unused`` has no part in the output."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.BatchNorm2d(width), nn.Dropout(0.1))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.norm = nn.LayerNorm(width)
        self.unused = nn.Linear(width, width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.blocks(self.stem(pixels).flatten(2).transpose(1, 2))
        return out


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.Linear(width, width)
        self.mlp = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.tanh(self.attn(x))
        return x + torch.tanh(self.mlp(x))


class TinyEncoder(Encoder):
    """Views: ``mean`` of the tokens, after the norm."""

    def __init__(self, seed: int = 0, name: str = "tiny/net") -> None:
        self.name = name
        self.module = randomised(TinyNetwork(), seed)
        self.card = Card()
        geometry = Geometry((SIZE, SIZE), resize=(SIZE, SIZE), crop="none", interpolation="bilinear")
        self.preprocess = Preprocess(geometry, (0.5,) * 3, (0.25,) * 3)
        self.views = {"mean": 16}
        self.default_view = "mean"
        self.freeze()

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = self.module.norm(self.module(pixels))  # type: ignore[operator]
        return {"mean": tokens.float().mean(dim=1), **flat_tokens(tokens)}


def draw(folder: Path, n: int = 60, *, strength: int = 60, n_train: int = 32, n_val: int = 12, **columns: Any) -> Path:
    """Write images of two classes, two of each patient, with a table of them, and return its path."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    label = np.arange(n) // 2 % 2
    for i in range(n):
        pixels = random.integers(0, 120, (24, 40, 3)).astype(np.uint8)
        pixels[6:18, 8:32, 0] += np.uint8(strength * label[i])
        Image.fromarray(pixels).save(folder / f"{i}.png")
    split = np.select([np.arange(n) < n_train, np.arange(n) < n_train + n_val], ["train", "val"], "test")
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(n)],
            "label": np.array(["no", "yes"])[label],
            "patient": [f"p{i // 2}" for i in range(n)],
            "split": split,
            **columns,
        }
    )
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a network's state."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    """Names of what is not, to the last bit, as it was."""
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}
