"""``blip/base|large``: the image encoder of BLIP, from Salesforce's own checkpoints or Hugging Face's."""

from __future__ import annotations

import re

import torch

from medprobe.encoders.base import Card, LoadOptions, Preprocess
from medprobe.encoders.registry import Spec
from medprobe.encoders.timm import TimmEncoder
from medprobe.encoders.vit import CLIP_MEAN, CLIP_STD, PlainViT, PositionResize, State, check_size, table_side
from medprobe.encoders.weights import fetch, load_strictly, read_checkpoint, state_dict_of
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

PATCH = 16
SIZES = {
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
_FILES = {"base": "model_base.pth", "large": "model_large.pth"}
_CARD = Card(
    licence="BSD-3-Clause",
    citation="Li et al., BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding "
    "and Generation, ICML 2022",
    training_data="14 or 129 million web images with captions (COCO, Visual Genome, CC3M, CC12M, SBU, LAION)",
    url="https://github.com/salesforce/BLIP",
)


class BlipViT(PlainViT):
    """BLIP's vision transformer with, where the checkpoint has one, its projection to the space of captions."""

    def __init__(self, n_projected: int, **config: int) -> None:
        super().__init__(PositionResize(), patch_size=PATCH, **config)
        self.vision_proj = torch.nn.Linear(self.embed_dim, n_projected) if n_projected else None


class BlipEncoder(TimmEncoder):
    """BLIP's image encoder.

    Views besides those of every transformer: ``projected``, the class token in the space of captions (not scaled to
    unit length), where the checkpoint has that projection; and ``huix2024``, token 1, the first patch, which the code
    of Palés Huix et al. (WACV 2024) takes for the class token.
    """

    def own_views(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``projected`` and ``huix2024``."""
        views = {"huix2024": tokens[:, 1]}
        if self._model.vision_proj is not None:
            views["projected"] = self._model.vision_proj(tokens[:, 0])
        return views

    def released_state(self) -> dict[str, torch.Tensor]:
        """Return image encoder and projection with the keys of Salesforce's files."""
        state = super().released_state()
        return {k if k.startswith("vision_proj.") else f"visual_encoder.{k}": value for k, value in state.items()}


def load(spec: Spec, options: LoadOptions) -> BlipEncoder:
    """Return BLIP's image encoder; the text model and the momentum copy of a checkpoint are left out."""
    if spec.name not in SIZES or spec.tag:
        raise UsageError(f"--model {spec}: the family blip has {', '.join(SIZES)}")
    size = options.image_size or 224
    check_size(size, PATCH, str(spec))
    module = network(
        state_dict_of(read_checkpoint(options.weights or _official_file(spec))), str(spec), **SIZES[spec.name]
    )
    geometry = Geometry(
        size=(size, size),
        resize=(size, size),
        crop="none",
        interpolation="bicubic",
        exact_decode=options.exact_decode,
    )
    return BlipEncoder(
        str(spec),
        module,
        Preprocess(geometry, CLIP_MEAN, CLIP_STD),
        _CARD,
        architecture=f"timm:VisionTransformer ({spec.name}, patch {PATCH}); {module.position_resize}",
    )


def network(state: State, what: str, **config: int) -> BlipViT:
    """Return the network of ``config`` with the image part of a Salesforce or Hugging Face checkpoint."""
    state = image_part(state)
    side = table_side(state, 1, what)
    projection = state.get("vision_proj.weight")
    module = BlipViT(0 if projection is None else len(projection), img_size=side * PATCH, **config)
    load_strictly(module, state, what)
    return module


_FROM_HUGGINGFACE = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^post_layernorm\.", "norm."),
)


def image_part(state: State) -> State:
    """Return image encoder and projection of a BLIP checkpoint with timm's keys.

    The dot of ``visual_encoder.`` matters: ``visual_encoder_m.`` is the momentum copy of training.
    """
    kept = {key: value for key, value in state.items() if key.startswith("vision_proj.")}
    own = {k.removeprefix("visual_encoder."): v for k, v in state.items() if k.startswith("visual_encoder.")}
    if own:
        return {**kept, **own}
    for key, value in state.items():
        name = key.removeprefix("vision_model.")
        if name == key and not re.match(r"(embeddings\.(class|patch|position)_embedding|encoder\.layers|post_)", key):
            continue
        for pattern, replacement in _FROM_HUGGINGFACE:
            name = re.sub(pattern, replacement, name)
        kept[name] = value
    return kept


def catalogue() -> dict[str, str]:
    """Return name and one line of each model of the family."""
    return {
        "blip/base": "BLIP ViT-B/16, 129 million image-text pairs",
        "blip/large": "BLIP ViT-L/16, 129 million image-text pairs",
    }


def _official_file(spec: Spec) -> str:
    filename = _FILES[spec.name]
    url = f"https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/{filename}"
    return str(fetch(str(spec), url, None, filename))
