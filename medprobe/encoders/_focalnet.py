"""FocalNet as SEEM trains it, with the key names of its checkpoints.

Yang et al., Focal Modulation Networks, NeurIPS 2022. Two things set it apart from the classification networks of that
paper: every stage's output has its own norm, and the small variant has two more convolutions a block.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

import torch
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm2d
from timm.models.focalnet import FocalModulation
from torch import nn

from medprobe.encoders.vit import State, without_prefix

_EPS = 1e-5


class FocalBlock(nn.Module):
    """Focal modulation, then a perceptron: each normalised and scaled before it is added to its input."""

    def __init__(self, dim: int, n_levels: int) -> None:
        super().__init__()
        self.modulation = FocalModulation(dim, focal_window=3, focal_level=n_levels, normalize_modulator=True)
        self.norm1 = LayerNorm2d(dim, eps=_EPS)
        self.gamma_1 = nn.Parameter(torch.ones(dim))
        self.mlp = Mlp(dim, 4 * dim, use_conv=True)
        self.norm2 = LayerNorm2d(dim, eps=_EPS)
        self.gamma_2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map after the block, of the shape of ``x`` (B, dim, H, W)."""
        x = x + self.gamma_1[:, None, None] * self.norm1(self.modulation(x))
        out: torch.Tensor = x + self.gamma_2[:, None, None] * self.norm2(self.mlp(x))
        return out


class DepthwiseFocalBlock(FocalBlock):
    """A focal block with a depth-wise convolution before either half, and norms over the sums."""

    def __init__(self, dim: int, n_levels: int) -> None:
        super().__init__(dim, n_levels)
        self.dw1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.dw2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map after the block, of the shape of ``x`` (B, dim, H, W)."""
        x = x + self.dw1(x)
        x = self.norm1(x + self.gamma_1[:, None, None] * self.modulation(x))
        x = x + self.dw2(x)
        out: torch.Tensor = self.norm2(x + self.gamma_2[:, None, None] * self.mlp(x))
        return out


class FocalStage(nn.Module):
    """Blocks of one width, the norm of their output, and the way down to the next stage."""

    def __init__(self, dim: int, blocks: Sequence[FocalBlock], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.norm = LayerNorm2d(dim, eps=_EPS)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised map of the stage, and the input of the next."""
        x = self.blocks(x)
        return self.norm(x), self.downsample(x)


class FocalNet(nn.Module):
    """Four stages of focal blocks, for input whose sides are multiples of 32.

    Args:
        embed_dim: Width of the first stage; each further one is twice as wide.
        depths: Number of blocks of each stage.
        n_levels: Number of focal levels.
        depthwise: Use :class:`DepthwiseFocalBlock`.

    """

    def __init__(self, embed_dim: int, depths: Sequence[int], n_levels: int, *, depthwise: bool) -> None:
        super().__init__()
        block = DepthwiseFocalBlock if depthwise else FocalBlock
        self.widths = [embed_dim * 2**i for i in range(len(depths))]
        self.patch_embed = _embedding(3, embed_dim, kernel=7, stride=4, padding=3 if depthwise else 2)
        self.layers = nn.ModuleList()
        for dim, depth in zip(self.widths, depths, strict=True):
            last = dim == self.widths[-1]
            down = nn.Identity() if last else _embedding(dim, 2 * dim, kernel=3, stride=2, padding=1)
            self.layers.append(FocalStage(dim, [block(dim, n_levels) for _ in range(depth)], down))

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the normalised map (B, width, H / stride, W / stride) of each stage, at strides 4, 8, 16 and 32."""
        x = self.patch_embed(pixels)
        maps = []
        for stage in self.layers:
            normalised, x = stage(x)
            maps.append(normalised)
        return maps


def focalnet_layout(state: State) -> State:
    """Return a FocalNet of SEEM with the keys of :class:`FocalNet`, its linear layers as convolutions of one pixel."""
    linear = (".f.weight", ".modulation.proj.weight", ".fc1.weight", ".fc2.weight")
    own = {}
    for key, value in without_prefix(state, "patch_embed.proj.weight").items():
        key = re.sub(r"^norm(\d)\.", r"layers.\1.norm.", key)
        own[key] = value[..., None, None] if key.endswith(linear) and value.ndim == 2 else value
    return own


def _embedding(in_dim: int, out_dim: int, *, kernel: int, stride: int, padding: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_dim, out_dim, kernel, stride=stride, padding=padding)
    return nn.Sequential(OrderedDict(proj=convolution, norm=LayerNorm2d(out_dim, eps=_EPS)))
