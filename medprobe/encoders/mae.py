"""``mae/vitb16|vitl16|vith14`` and RETFound, a masked autoencoder of retinal images."""

from __future__ import annotations

from dataclasses import dataclass

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

_BASE = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
_LARGE = {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16}
_HUGE = {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16}
_CARD = Card(
    licence="CC-BY-NC-4.0",
    citation="He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022",
    training_data="ImageNet-1k without labels, self-supervised",
    url="https://github.com/facebookresearch/mae",
)


@dataclass(frozen=True)
class Model:
    """A masked autoencoder: its network, its file, and the page to ask at where it is given out on request."""

    config: dict[str, int]
    file: str
    line: str
    card: Card = _CARD
    page: str = ""


def _retfound(images: str, repo: str) -> Card:
    return Card(
        licence="CC-BY-NC-4.0 (on request)",
        citation="Zhou et al., A Foundation Model for Generalizable Disease Detection from Retinal Images, Nature 2023",
        training_data=f"ImageNet-1k, then {images} of Moorfields Eye Hospital and public sets, self-supervised",
        url=f"https://huggingface.co/{repo}",
    )


_CFP, _OCT = "YukunZhou/RETFound_mae_natureCFP", "YukunZhou/RETFound_mae_natureOCT"
MODELS = {
    "vitb16": Model(_BASE, "mae_pretrain_vit_base.pth", "MAE ViT-B/16, ImageNet-1k"),
    "vitl16": Model(_LARGE, "mae_pretrain_vit_large.pth", "MAE ViT-L/16, ImageNet-1k"),
    "vith14": Model(_HUGE, "mae_pretrain_vit_huge.pth", "MAE ViT-H/14, ImageNet-1k"),
    "retfound-cfp": Model(
        _LARGE,
        "RETFound_mae_natureCFP.pth",
        "RETFound ViT-L/16, 904,170 colour fundus photographs; on request",
        _retfound("904,170 colour fundus photographs", _CFP),
        f"https://huggingface.co/{_CFP}",
    ),
    "retfound-oct": Model(
        _LARGE,
        "RETFound_mae_natureOCT.pth",
        "RETFound ViT-L/16, 736,442 retinal OCT images; on request",
        _retfound("736,442 OCT images", _OCT),
        f"https://huggingface.co/{_OCT}",
    ),
}


def load(spec: Spec, options: LoadOptions) -> TimmEncoder:
    """Return the encoder half of a masked autoencoder from the official file, timm's or Hugging Face's.

    The default view is the class token after the final norm, as in the authors' linear probe.
    """
    if spec.name not in MODELS or spec.tag:
        raise UsageError(f"--model {spec}: the family mae has {', '.join(MODELS)}")
    model = MODELS[spec.name]
    size = options.image_size or 224
    check_size(size, model.config["patch_size"], str(spec))
    state = timm_layout(state_dict_of(read_checkpoint(options.weights or _official_file(spec, model))))
    module = network(state, str(spec), **model.config)
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
        model.card,
        architecture=f"timm:VisionTransformer ({spec.name}); {module.position_resize}",
    )


def network(state: State, what: str, **config: int) -> PlainViT:
    """Return the network of ``config`` with a state in timm's layout, for input of any size."""
    side = table_side(state, 1, what)
    module = PlainViT(PositionResize(), img_size=side * config["patch_size"], **config)
    load_strictly(module, state, what)
    return module


def timm_layout(state: State) -> State:
    """Return an official, timm or Hugging Face checkpoint with timm's keys; the decoder half is left out."""
    if any(key.endswith("embeddings.cls_token") for key in state):
        state = from_huggingface(without_prefix(state, "embeddings.cls_token"))
    return {key: value for key, value in state.items() if not key.startswith(("decoder", "mask_token", "head."))}


def catalogue() -> dict[str, str]:
    """Return name and one line of each model of the family."""
    return {f"mae/{name}": model.line for name, model in MODELS.items()}


def _official_file(spec: Spec, model: Model) -> str:
    if model.page:
        raise UsageError(
            f"--model {spec}: {model.file} is given out on request. Ask for access at {model.page}, fetch the file and "
            "pass it with --weights"
        )
    return str(fetch(str(spec), f"https://dl.fbaipublicfiles.com/mae/pretrain/{model.file}", None, model.file))
