"""What is trained: an encoder, all or part of it, under a linear head or under the blocks of a DeiT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from medprobe.encoders.base import TOKENS, Encoder, LoadOptions
from medprobe.encoders.registry import load_encoder
from medprobe.encoders.vit import PositionResize, resized_positions
from medprobe.errors import UsageError
from medprobe.finetune.layers import depths, reached
from medprobe.finetune.lora import add_adapters

FULL, PARTIAL, LINEAR, LORA, DEIT_HEAD = "full", "partial", "linear", "lora", "deit-head"
MODES = (FULL, PARTIAL, LINEAR, LORA, DEIT_HEAD)
DEIT = "imagenet/deit-b"


@dataclass(frozen=True)
class Mode:
    """What of an encoder is trained, and under which head.

    Attributes:
        name: ``full``, ``partial``, ``linear`` (the encoder is frozen), ``lora`` or ``deit-head``.
        unfreeze_from: With ``partial``, the first block that is trained, counted from 0.
        blocks_alone: With ``partial``, what follows the blocks stays frozen.
        lora_rank: Of the adapters.
        frozen: With ``deit-head``, whether the encoder is frozen.
        head_weights: Checkpoint of the DeiT; its published one by default.

    """

    name: str = FULL
    unfreeze_from: int | None = None
    blocks_alone: bool = False
    lora_rank: int = 8
    frozen: bool = True
    head_weights: str | None = None

    def __post_init__(self) -> None:
        if self.name not in MODES:
            raise UsageError(f"--mode {self.name}: one of {', '.join(MODES)}")
        if (self.unfreeze_from is not None) != (self.name == PARTIAL):
            raise UsageError("--unfreeze-from: goes with --mode partial, and --mode partial needs it")

    @property
    def label(self) -> str:
        """What results call it."""
        if self.name == PARTIAL:
            return f"{PARTIAL}-from-{self.unfreeze_from}"
        return f"{DEIT_HEAD}-unfrozen" if self.name == DEIT_HEAD and not self.frozen else self.name


class DeitHead(nn.Module):
    """Patch tokens through a linear layer and a norm into the blocks of a DeiT, and its class token to a linear classifier.

    As in Pales Huix et al. (WACV 2024): the DeiT's own patch embedding is not used; its position table is resized
    (bicubic) to the number of tokens, which have to fill a square.

    Args:
        width: Of the tokens.
        n_classes: Of the output.
        deit: A vision transformer of timm with a class token and without a classifier.

    """

    def __init__(self, width: int, n_classes: int, deit: Any) -> None:
        super().__init__()
        deit.patch_embed = nn.Identity()
        self.project = nn.Sequential(nn.Linear(width, deit.embed_dim), nn.LayerNorm(deit.embed_dim))
        self.deit = deit
        self.classifier = nn.Linear(deit.embed_dim, n_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes) of tokens (B, patches, width)."""
        side = math.isqrt(tokens.shape[1])
        if side * side != tokens.shape[1]:
            raise UsageError(
                f"--mode {DEIT_HEAD}: {tokens.shape[1]} patch tokens are no square: take a square --image-size"
            )
        table = resized_positions(self.deit.pos_embed, (side, side), 1, PositionResize())
        x = torch.cat([self.deit.cls_token.expand(len(tokens), -1, -1), self.project(tokens)], dim=1) + table
        x = self.deit.norm(self.deit.blocks(x))
        logits: torch.Tensor = self.classifier(x[:, 0])
        return logits


class Network(nn.Module):
    """An encoder and a head, from 8-bit images to logits. Frozen parts are in evaluation mode, whatever is asked.

    The encoder is changed in place.

    Args:
        encoder: Frozen, as it is loaded.
        n_classes: Of the output.
        mode: What is trained.
        view: The encoder's vector that a linear head is given.

    Attributes:
        view: What the head is given.

    Raises:
        UsageError: The mode cannot be had of this encoder.

    """

    def __init__(self, encoder: Encoder, n_classes: int, mode: Mode, view: str | None = None) -> None:
        super().__init__()
        self.mode = mode
        self._encoder = encoder
        self.body = encoder.module
        self._trained_parts: list[nn.Module] = []
        if mode.name == DEIT_HEAD:
            if view is not None:
                raise UsageError(f"--view: not with --mode {DEIT_HEAD}, which takes the patch tokens")
            self.view = TOKENS
            with torch.no_grad():
                width = self._example().shape[2]
            deit = load_encoder(DEIT, LoadOptions(weights=mode.head_weights)).module.requires_grad_(True)
            self.head: nn.Module = DeitHead(width, n_classes, deit)
        else:
            self.view = view or encoder.default_view
            if self.view not in encoder.views:
                raise UsageError(f"--view {view}: {encoder.name} has {', '.join(encoder.views)}")
            self.head = nn.Linear(encoder.views[self.view], n_classes)
        self._choose()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the head is given, for 8-bit images (B, height, width, 3)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            return self._of_pixels(self._encoder.normalize(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes) for 8-bit images (B, height, width, 3)."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits

    def train(self, mode: bool = True) -> Network:
        """Put what is trained in training mode, and everything else in evaluation mode."""
        super().train(mode)
        self.body.eval()
        for part in self._trained_parts:
            part.train(mode)
        return self

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """What training changes, by name: the trained parameters, and the buffers of what is in training mode."""
        changing = {id(b) for part in (*self._trained_parts, self.head) for b in part.buffers()}
        # Shared memory with the network: to be copied by whoever keeps it.
        buffers = {name: b.detach() for name, b in self.named_buffers() if id(b) in changing}
        return {name: p.detach() for name, p in self.trained.items()} | buffers

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what :attr:`state` gave."""
        for name, value in self.state.items():
            value.copy_(state[name])

    @property
    def n_blocks(self) -> int:
        """Number of the encoder's blocks."""
        return len(self._encoder.blocks())

    @cached_property
    def is_frozen(self) -> bool:
        """Whether nothing of the encoder is trained."""
        return not any(p.requires_grad for p in self.body.parameters())

    @cached_property
    def depth(self) -> dict[str, int]:
        """How deep each parameter of the encoder lies, by the names of :attr:`trained`."""
        needed = {name: p.requires_grad for name, p in self.body.named_parameters()}
        self.body.requires_grad_(True)
        try:
            found = depths(self._example, self.body, self._encoder.blocks())
        finally:
            for name, p in self.body.named_parameters():
                p.requires_grad_(needed[name])
        return {f"body.{name}": level for name, level in found.items()}

    def _of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.view == TOKENS:
            return self._encoder.forward_tokens(pixels).float()
        return self._encoder.forward_views(pixels)[self.view].float()

    def _example(self) -> torch.Tensor:
        """Return what the head is given for an image of nothing."""
        size = self._encoder.preprocess.geometry.size
        return self._of_pixels(torch.zeros(1, 3, *size, device=self._encoder.device))

    def _choose(self) -> None:
        """Decide which parameters are trained, and which parts are in training mode while they are."""
        mode, encoder = self.mode, self._encoder
        if mode.name == LORA:
            add_adapters(encoder, mode.lora_rank)
        elif mode.name == PARTIAL:
            self._unfreeze_from(mode.unfreeze_from or 0)
        elif mode.name == FULL or (mode.name == DEIT_HEAD and not mode.frozen):
            self.body.requires_grad_(True)
            self._trained_parts = [self.body]
        used = reached(self._example, dict(self.body.named_parameters()))
        for name, parameter in self.body.named_parameters():
            parameter.requires_grad_(name in used)
        if mode.name not in {LINEAR, DEIT_HEAD} and not used:
            raise UsageError(f"--mode {mode.name}: {encoder.name} has nothing that could be trained so")

    def _unfreeze_from(self, first: int) -> None:
        blocks = self._encoder.blocks()
        if not blocks:
            raise UsageError(f"--mode {PARTIAL}: the blocks of {self._encoder.name} are not known")
        if not 0 <= first < len(blocks):
            raise UsageError(f"--unfreeze-from {first}: {self._encoder.name} has the blocks 0 to {len(blocks) - 1}")
        last = len(blocks) + (0 if self.mode.blocks_alone else 1)
        depth = self.depth
        for name, parameter in self.body.named_parameters():
            parameter.requires_grad_(first < depth[f"body.{name}"] <= last)
        self._trained_parts = [
            module
            for module in self.body.modules()
            if any(True for _ in module.parameters()) and all(p.requires_grad for p in module.parameters())
        ]
