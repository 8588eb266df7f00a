"""The plain vision transformer that several families share, and the renaming of their checkpoints' keys."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional

from medprobe.errors import DataError, UsageError

State = dict[str, torch.Tensor]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PositionResize:
    """How a family's own code brings its position table to another grid: bicubic, with or without these two.

    ``offset`` is the number that DINO and DINOv2 add to the target side before they divide by the table's side, so
    that the sampling grid is slightly stretched.
    """

    offset: float = 0.0
    antialias: bool = False

    def __str__(self) -> str:
        scale = f"scale (side+{self.offset})/table" if self.offset else "to size"
        return f"position table bicubic {scale}, antialias {'on' if self.antialias else 'off'}"


class PlainViT(VisionTransformer):
    """timm's vision transformer without classifier, for any input that its patches divide.

    The position table keeps the side of the checkpoint and is resized for each input as the authors' code does.
    """

    def __init__(self, resize: PositionResize, **config: Any) -> None:
        super().__init__(num_classes=0, dynamic_img_size=True, weight_init="skip", **config)
        self.position_resize = resize

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        n, height, width, channels = x.shape
        n_prefix = 0 if self.no_embed_class else 1
        assert self.pos_embed is not None
        assert self.cls_token is not None
        positions = resized_positions(self.pos_embed, (height, width), n_prefix, self.position_resize).to(x.dtype)
        patches = x.reshape(n, -1, channels) + positions[:, n_prefix:]
        prefix = self.cls_token.expand(n, -1, -1)
        if n_prefix:
            prefix = prefix + positions[:, :1]
        if self.reg_token is not None:
            prefix = torch.cat([prefix, self.reg_token.expand(n, -1, -1)], dim=1)
        return torch.cat([prefix, patches], dim=1)


def resized_positions(
    table: torch.Tensor, grid: tuple[int, int], n_prefix: int, resize: PositionResize
) -> torch.Tensor:
    """Return a square position table (1, n_prefix + side * side, width) for another grid (rows, columns)."""
    side = math.isqrt(table.shape[1] - n_prefix)
    if grid == (side, side):
        return table
    patches = table[:, n_prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    target: dict[str, Any] = {"size": grid}
    if resize.offset:
        target = {"scale_factor": tuple((length + resize.offset) / side for length in grid)}
    patches = functional.interpolate(patches, mode="bicubic", antialias=resize.antialias, **target)
    return torch.cat([table[:, :n_prefix], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def table_side(state: Mapping[str, torch.Tensor], n_prefix: int, what: str) -> int:
    """Return the side of the square position table ``pos_embed`` of a checkpoint.

    Raises:
        DataError: There is no such table, or it is not square.

    """
    if "pos_embed" not in state:
        first = ", ".join(sorted(state)[:3]) or "none"
        raise DataError(f"--weights: the file does not fit {what}: no position table in it (first keys: {first})")
    n_positions = state["pos_embed"].shape[1] - n_prefix
    side = math.isqrt(max(n_positions, 0))
    if side * side != n_positions:
        raise DataError(f"--weights: the file does not fit {what}: {n_positions} positions are not a square grid")
    return side


def check_size(image_size: int, patch: int, model: str) -> None:
    """Raise UsageError unless patches of that side fill the image exactly."""
    if image_size % patch or image_size < patch:
        raise UsageError(f"--image-size {image_size}: {model} needs a multiple of {patch}")


def without_prefix(state: Mapping[str, torch.Tensor], anchor: str) -> State:
    """Return the state whose key ``anchor`` stands behind a prefix such as ``backbone.``, with that prefix cut off.

    A state without such a key comes back as it is.
    """
    found = [key for key in state if key == anchor or key.endswith(f".{anchor}")]
    if not found:
        return dict(state)
    prefix = min(found, key=len).removesuffix(anchor)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


_FROM_HUGGINGFACE = (
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.patch_embeddings\.(weight|bias)$", r"patch_embed.proj.\1"),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"\.(?:attention\.output\.dense|attention\.o_proj)\.", ".attn.proj."),
    (r"\.(?:layernorm_before)\.", ".norm1."),
    (r"\.(?:layernorm_after)\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.mlp\.(?:up_proj|weights_in)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:down_proj|weights_out)\.", ".mlp.fc2."),
    (r"(\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)
_QUERY = re.compile(r"^(blocks\.\d+)\.attention\.(?:attention\.query|q_proj)\.(weight|bias)$")


def from_huggingface(state: Mapping[str, torch.Tensor]) -> State:
    """Return a ViT, DINO, DINOv2 or DINOv3 checkpoint of Hugging Face with timm's key names.

    Query, key and value are joined; a key projection without bias (DINOv3) gets zeros.
    """
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in _FROM_HUGGINGFACE:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    for match in [m for m in map(_QUERY.match, list(renamed)) if m]:
        block, kind = match.groups()
        separate = "attention.attention." in match.group()
        names = ("attention.query", "attention.key", "attention.value") if separate else ("q_proj", "k_proj", "v_proj")
        query = renamed[match.group()]
        parts = [renamed.pop(f"{block}.attention.{name}.{kind}", torch.zeros_like(query)) for name in names]
        renamed[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
    return renamed
