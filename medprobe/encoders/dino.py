"""``dino/vits16|vits8|vitb16|vitb8``: the first DINO, with the official features at any size."""

from __future__ import annotations

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

_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
SIZES = {
    "vits16": {"patch_size": 16, **_SMALL},
    "vits8": {"patch_size": 8, **_SMALL},
    "vitb16": {"patch_size": 16, **_BASE},
    "vitb8": {"patch_size": 8, **_BASE},
}
_FILES = {
    "vits16": "dino_deitsmall16_pretrain",
    "vits8": "dino_deitsmall8_pretrain",
    "vitb16": "dino_vitbase16_pretrain",
    "vitb8": "dino_vitbase8_pretrain",
}
_CARD = Card(
    licence="Apache-2.0",
    citation="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021",
    training_data="ImageNet-1k without labels, self-supervised",
    url="https://github.com/facebookresearch/dino",
)


def load(spec: Spec, options: LoadOptions) -> TimmEncoder:
    """Return a DINO encoder from the official file (backbone alone or full checkpoint), timm's or Hugging Face's."""
    if spec.name not in SIZES or spec.tag:
        raise UsageError(f"--model {spec}: the family dino has {', '.join(SIZES)}")
    size = options.image_size or 224
    check_size(size, SIZES[spec.name]["patch_size"], str(spec))
    state = timm_layout(state_dict_of(read_checkpoint(options.weights or _official_file(spec))))
    module = network(state, str(spec), **SIZES[spec.name])
    geometry = Geometry(
        size=(size, size),
        resize=round(size * 256 / 224),
        crop="center",
        interpolation="bicubic",
        exact_decode=options.exact_decode,
    )
    return TimmEncoder(
        str(spec),
        module,
        Preprocess(geometry, IMAGENET_MEAN, IMAGENET_STD),
        _CARD,
        architecture=f"timm:VisionTransformer ({spec.name}); {module.position_resize}",
    )


def network(state: State, what: str, **config: int) -> PlainViT:
    """Return the network of ``config`` with a state in timm's layout, for input of any size."""
    side = table_side(state, 1, what)
    module = PlainViT(PositionResize(offset=0.1), img_size=side * config["patch_size"], **config)
    load_strictly(module, state, what)
    return module


def timm_layout(state: State) -> State:
    """Return an official, timm or Hugging Face checkpoint of DINO with timm's keys; its training head is left out."""
    if any(key.endswith("embeddings.cls_token") for key in state):
        state = from_huggingface(without_prefix(state, "embeddings.cls_token"))
    else:
        state = without_prefix(state, "cls_token")
    return {key: value for key, value in state.items() if not key.startswith(("head.", "pooler."))}


def catalogue() -> dict[str, str]:
    """Return name and one line of each model of the family."""
    return {f"dino/{name}": f"DINO ViT, patch {name[4:]}, ImageNet-1k without labels" for name in SIZES}


def _official_file(spec: Spec) -> str:
    stem = _FILES[spec.name]
    return str(fetch(str(spec), f"https://dl.fbaipublicfiles.com/dino/{stem}/{stem}.pth", None, f"{stem}.pth"))
