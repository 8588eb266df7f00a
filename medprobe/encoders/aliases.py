"""``aimv2/...``, ``siglip2/...``, ``coca/...``: names for models of timm and open_clip."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from medprobe.encoders.base import Card, Encoder, LoadOptions
from medprobe.encoders.registry import FAMILIES, Spec
from medprobe.errors import UsageError


@dataclass(frozen=True)
class Alias:
    """What a name stands for, and its card."""

    target: Spec
    card: Card
    line: str


def _aimv2(size: str) -> Alias:
    card = Card(
        licence="Apple model licence (apple-amlr)",
        citation="Fini et al., Multimodal Autoregressive Pre-training of Large Vision Encoders, CVPR 2025",
        training_data="12 billion image-text pairs: DFN-2B, COYO, and a set of Apple's own; autoregressive",
        url="https://github.com/apple/ml-aim",
    )
    target = Spec("timm", f"aimv2_{size}_patch14_224", "apple_pt")
    return Alias(target, card, f"AIMv2 {size}, patch 14")


def _siglip2(model: str) -> Alias:
    card = Card(
        licence="Apache-2.0",
        citation="Tschannen et al., SigLIP 2: Multilingual Vision-Language Encoders, arXiv 2502.14786",
        training_data="WebLI: 10 billion images with 12 billion texts in 109 languages",
        url=f"https://huggingface.co/timm/{model}",
    )
    return Alias(Spec("openclip", model, "webli"), card, f"SigLIP 2 {model}, WebLI")


def _coca(model: str) -> Alias:
    card = Card(
        licence="MIT",
        citation="Yu et al., CoCa: Contrastive Captioners are Image-Text Foundation Models, TMLR 2022; OpenCLIP",
        training_data="LAION-2B: 2 billion web images with captions",
        url="https://github.com/mlfoundations/open_clip",
    )
    return Alias(Spec("openclip", f"coca_{model}", "laion2b_s13b_b90k"), card, f"CoCa {model}")


ALIASES = {
    "aimv2/large": _aimv2("large"),
    "aimv2/huge": _aimv2("huge"),
    "siglip2/base": _siglip2("ViT-B-16-SigLIP2"),
    "siglip2/large": _siglip2("ViT-L-16-SigLIP2-256"),
    "siglip2/so400m": _siglip2("ViT-SO400M-14-SigLIP2"),
    "coca/vit-b-32": _coca("ViT-B-32"),
    "coca/vit-l-14": _coca("ViT-L-14"),
}


def load(spec: Spec, options: LoadOptions) -> Encoder:
    """Return the encoder that a name stands for, under that name and with its card."""
    alias = ALIASES.get(str(spec))
    if alias is None:
        known = ", ".join(name for name in ALIASES if name.startswith(f"{spec.family}/"))
        raise UsageError(f"--model {spec}: the family {spec.family} has {known}")
    encoder: Encoder = import_module(FAMILIES[alias.target.family]).load(alias.target, options)
    encoder.name = str(spec)
    encoder.card = alias.card
    return encoder


def catalogue() -> dict[str, str]:
    """Return name and one line of each alias."""
    return {name: f"{alias.line} ({alias.target})" for name, alias in ALIASES.items()}
