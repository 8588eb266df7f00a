"""``dinov2/vits14|vitb14|vitl14|vitg14``, with registers as ``...-reg``: the official features at any size."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.mlp import SwiGLUPacked

from medprobe.encoders.base import Card, LoadOptions, Preprocess
from medprobe.encoders.registry import Spec
from medprobe.encoders.timm import TimmEncoder
from medprobe.encoders.vit import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PlainViT,
    PositionResize,
    State,
    check_size,
    from_huggingface,
    table_side,
    without_prefix,
)
from medprobe.encoders.weights import fetch, load_strictly, read_checkpoint, state_dict_of
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

PATCH = 14
_SWIGLU = {"mlp_layer": SwiGLUPacked, "mlp_ratio": 2.66667 * 2, "act_layer": torch.nn.SiLU}
SIZES: dict[str, dict[str, Any]] = {
    "vits14": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vitb14": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vitl14": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vitg14": {"embed_dim": 1536, "depth": 40, "num_heads": 24, **_SWIGLU},
}
_SHA256 = {
    "vits14": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    "vitb14": "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    "vitl14": "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
}
_CARD = Card(
    licence="Apache-2.0",
    citation="Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024; "
    "registers: Darcet et al., Vision Transformers Need Registers, ICLR 2024",
    training_data="LVD-142M: 142 million curated web images, self-supervised",
    url="https://github.com/facebookresearch/dinov2",
)


class DinoV2Encoder(TimmEncoder):
    """DINOv2, whose patch tokens are handed on as they leave the last block, before the final norm."""

    def forward_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the patch tokens (B, patches, width) of the last block."""
        last: list[torch.Tensor] = self._model.forward_intermediates(
            pixels, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
        )
        return last[0]


def load(spec: Spec, options: LoadOptions) -> DinoV2Encoder:
    """Return a DINOv2 encoder from the official file, timm's or Hugging Face's conversion.

    All three give the features of the official code, which resizes its position table in its own way.
    """
    name, _, variant = spec.name.partition("-")
    if name not in SIZES or variant not in ("", "reg") or spec.tag:
        raise UsageError(f"--model {spec}: the family dinov2 has {', '.join(SIZES)}, each also with -reg")
    size = options.image_size or 224
    check_size(size, PATCH, str(spec))
    file = options.weights or _official_file(spec, name, "_reg4" if variant else "")
    state = timm_layout(state_dict_of(read_checkpoint(file)))
    module = network(state, str(spec), registers=bool(variant), **SIZES[name])
    geometry = Geometry(
        size=(size, size),
        resize=round(size * 256 / 224),
        crop="center",
        interpolation="bicubic",
        exact_decode=options.exact_decode,
    )
    return DinoV2Encoder(
        str(spec),
        module,
        Preprocess(geometry, IMAGENET_MEAN, IMAGENET_STD),
        _CARD,
        architecture=f"timm:VisionTransformer ({spec.name}); {module.position_resize}",
    )


def network(state: State, what: str, *, registers: bool, **config: Any) -> PlainViT:
    """Return the network of ``config`` with a state in timm's layout, for input of any size.

    The variant with registers resizes its positions with antialiasing and without offset, the other one the other way
    round, as the official hub entries do.
    """
    extra: dict[str, Any] = {"reg_tokens": 4, "no_embed_class": True} if registers else {}
    resize = PositionResize(antialias=True) if registers else PositionResize(offset=0.1)
    side = table_side(state, 0 if registers else 1, what)
    module = PlainViT(resize, img_size=side * PATCH, patch_size=PATCH, init_values=1e-5, **{**config, **extra})
    load_strictly(module, state, what)
    return module


def timm_layout(state: State) -> State:
    """Return an official, timm or Hugging Face checkpoint of DINOv2 with timm's keys, recognised by its own."""
    if any(key.endswith("embeddings.cls_token") for key in state):
        state = from_huggingface(without_prefix(state, "embeddings.cls_token"))
    else:
        state = without_prefix(state, "cls_token")
    state.pop("mask_token", None)
    if "register_tokens" in state:  # timm adds the class token's position to the token itself
        positions = state["pos_embed"].float()
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"].float() + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return {key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): v for key, v in state.items()}


def catalogue() -> dict[str, str]:
    """Return name and one line of each model of the family."""
    return {
        f"dinov2/{name}{variant}": f"DINOv2 ViT{words}, LVD-142M"
        for name in SIZES
        for variant, words in (("", ""), ("-reg", " with registers"))
    }


def _official_file(spec: Spec, name: str, registers: str) -> str:
    filename = f"dinov2_{name}{registers}_pretrain.pth"
    url = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_{name}/{filename}"
    return str(fetch(str(spec), url, None if registers else _SHA256.get(name), filename))
