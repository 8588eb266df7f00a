"""``seem/focal-t|focal-l|davit-d3|samvit-b``: the image backbone of SEEM, from its official checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models.davit import DaVit
from torch import nn
from torch.nn import functional

from medprobe.encoders._focalnet import FocalNet, focalnet_layout
from medprobe.encoders.base import Card, Encoder, LoadOptions, Preprocess, flat_tokens
from medprobe.encoders.registry import Spec
from medprobe.encoders.sam import SIZES as SAM_SIZES
from medprobe.encoders.sam import SamViT, timm_layout
from medprobe.encoders.vit import IMAGENET_MEAN, IMAGENET_STD, State, without_prefix
from medprobe.encoders.weights import fetch, load_strictly, read_checkpoint, state_dict_of
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

STAGES = ("res2", "res3", "res4", "res5")
_STRIDE = 32  # pixels: that of the last stage
_XDECODER = "X-Decoder (COCO and 4 million image-text pairs)"
_CARD = Card(
    licence="Apache-2.0",
    citation="Zou et al., Segment Everything Everywhere All at Once, NeurIPS 2023",
    training_data="COCO 2017 images (118,000) with panoptic, referring (RefCOCO) and LVIS labels",
    url="https://github.com/UX-Decoder/Segment-Everything-Everywhere-All-At-Once",
)


class DaViT(DaVit):
    """timm's DaViT as SEEM has it: four stages, and no norm after them."""

    head: Any

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], n_heads: tuple[int, ...]) -> None:
        super().__init__(
            depths=depths,
            embed_dims=widths,
            num_heads=n_heads,
            window_size=7,
            down_kernel_size=2,
            channel_attn_v2=True,
            named_blocks=True,
            num_classes=0,
        )
        self.widths = list(widths)
        self.head = nn.Identity()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the map of each stage."""
        maps: Any = self.forward_intermediates(x, intermediates_only=True)
        return list(maps)


class SamPyramid(SamViT):
    """SAM's vision transformer with a feature pyramid, made of its last map alone, in place of the neck."""

    neck: Any

    def __init__(self, widths: tuple[int, int, int, int], **config: int) -> None:
        super().__init__(**config)
        self.widths = list(widths)
        dim = self.embed_dim
        # Inner widths: half, half and twice that of the transformer, but no less than the stage needs.
        up4, up8, down = max(2 * widths[0], dim // 2), max(widths[1], dim // 2), max(widths[3], 2 * dim)
        self.neck = nn.ModuleDict(
            {
                "down_4": nn.Sequential(
                    nn.ConvTranspose2d(dim, up4, 2, stride=2),
                    nn.GroupNorm(1, up4),
                    nn.GELU(),
                    nn.ConvTranspose2d(up4, up4 // 2, 2, stride=2),
                    nn.GroupNorm(1, up4 // 2),
                    *_projection(up4 // 2, widths[0]),
                ),
                "down_8": nn.Sequential(
                    nn.ConvTranspose2d(dim, up8, 2, stride=2), nn.GroupNorm(1, up8), *_projection(up8, widths[1])
                ),
                "down_16": nn.Sequential(*_projection(dim, widths[2])),
                "down_32": nn.Sequential(
                    nn.Conv2d(dim, down, 2, stride=2), nn.GroupNorm(1, down), *_projection(down, widths[3])
                ),
            }
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the map of each level."""
        last = self.forward_intermediates(x, indices=1, intermediates_only=True)[0]
        return [level(last) for level in self.neck.values()]


def _projection(in_dim: int, out_dim: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(in_dim, out_dim, 1), nn.GroupNorm(1, out_dim), nn.GELU()


_DAVIT_TO_TIMM = (
    (r"^convs\.0\.proj\.", "stem.conv."),
    (r"^convs\.0\.norm\.", "stem.norm."),
    (r"^convs\.(\d+)\.proj\.", r"stages.\1.downsample.conv."),
    (r"^convs\.(\d+)\.norm\.", r"stages.\1.downsample.norm."),
    (r"^blocks\.(\d+)\.", r"stages.\1.blocks."),
    (r"\.conv([12])\.fn\.dw\.", r".cpe\1.proj."),
    (r"\.(?:window|channel)_attn\.norm\.", ".norm1."),
    (r"\.(?:window|channel)_attn\.fn\.", ".attn."),
    (r"\.ffn\.norm\.", ".norm2."),
    (r"\.ffn\.fn\.net\.", ".mlp."),
)


def davit_layout(state: State) -> State:
    """Return a DaViT of SEEM with timm's keys."""
    renamed = {}
    for key, value in without_prefix(state, "convs.0.proj.weight").items():
        for pattern, replacement in _DAVIT_TO_TIMM:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


@dataclass(frozen=True)
class Variant:
    """A network of the family: how it is built, how a checkpoint's keys are renamed, and its official file."""

    build: Callable[[], nn.Module]
    layout: Callable[[State], State]
    filename: str | None
    start: str
    line: str


VARIANTS = {
    "focal-t": Variant(
        lambda: FocalNet(96, (2, 2, 6, 2), 3, depthwise=True),
        focalnet_layout,
        "seem_focalt_v0.pt",
        _XDECODER,
        "SEEM Focal-T with depth-wise convolutions",
    ),
    "focal-l": Variant(
        lambda: FocalNet(192, (2, 2, 18, 2), 4, depthwise=False),
        focalnet_layout,
        "seem_focall_v0.pt",
        _XDECODER,
        "SEEM Focal-L",
    ),
    "davit-d3": Variant(
        lambda: DaViT((128, 256, 512, 1024), (1, 1, 9, 1), (4, 8, 16, 32)),
        davit_layout,
        None,
        _XDECODER,
        "SEEM DaViT-d3; its file has to be given with --weights",
    ),
    "samvit-b": Variant(
        lambda: SamPyramid((128, 256, 512, 1024), **SAM_SIZES["vit_b"]),
        timm_layout,
        "seem_samvitb_v1.pt",
        "SAM (SA-1B)",
        "SEEM SAM-ViT-B with a feature pyramid",
    ),
}


class SeemEncoder(Encoder):
    """SEEM's image backbone, whose maps at strides 4 to 32 feed its mask decoder.

    Views: ``res2`` to ``res5``, the means over the maps, and ``stages``, all four joined. Focal maps have gone through
    their norms, a DaViT has none. Input whose sides are no multiples of 32 is padded at the right and at the bottom
    with zeros, that is with the mean colour, as SEEM does it; the padding is part of the mean. SEEM itself keeps the
    aspect of an image; here it is squashed to 256/224 of the size and the centre is taken.
    """

    reentrant = True

    def __init__(self, name: str, module: nn.Module, preprocess: Preprocess, card: Card, architecture: str) -> None:
        self.name = name
        self.module = module
        self.preprocess = preprocess
        self.card = card
        self.architecture = architecture
        self._model: Any = module
        widths: Any = module.widths
        self.views = {**dict(zip(STAGES, widths, strict=True)), "stages": sum(widths)}
        self.default_view = "res5"
        self.freeze()

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the views that the class describes."""
        height, width = pixels.shape[-2:]
        padded = functional.pad(pixels, (0, -width % _STRIDE, 0, -height % _STRIDE))
        stages = self._model(padded)
        means = [stage.float().mean(dim=(2, 3)) for stage in stages]
        pooled = {**dict(zip(STAGES, means, strict=True)), "stages": torch.cat(means, dim=1)}
        return {**pooled, **flat_tokens(stages[-1])}


def load(spec: Spec, options: LoadOptions) -> SeemEncoder:
    """Return SEEM's image backbone from an official ``.pt`` (whole model), of either version."""
    variant = VARIANTS.get(spec.name)
    if variant is None or spec.tag:
        raise UsageError(f"--model {spec}: the family seem has {', '.join(VARIANTS)}")
    size = options.image_size or 224
    if size < _STRIDE:
        raise UsageError(f"--image-size {size}: {spec} needs {_STRIDE} or more")
    state = state_dict_of(read_checkpoint(options.weights or _official_file(spec, variant)))
    side = round(size * 256 / 224)
    geometry = Geometry(
        size=(size, size),
        resize=(side, side),
        crop="center",
        interpolation="bicubic",
        exact_decode=options.exact_decode,
    )
    return SeemEncoder(
        str(spec),
        network(state, variant, str(spec)),
        Preprocess(geometry, IMAGENET_MEAN, IMAGENET_STD),
        replace(_CARD, training_data=f"{_CARD.training_data}; initialised from {variant.start}"),
        architecture=f"SEEM backbone {spec.name}",
    )


def network(state: State, variant: Variant, what: str) -> nn.Module:
    """Return the network of a variant with the backbone of an official checkpoint."""
    module = variant.build()
    load_strictly(module, variant.layout(state), what, found=state)
    return module


def catalogue() -> dict[str, str]:
    """Return name and one line of each model of the family."""
    return {f"seem/{name}": variant.line for name, variant in VARIANTS.items()}


def _official_file(spec: Spec, variant: Variant) -> str:
    if variant.filename is None:
        raise UsageError(f"--model {spec}: no file of it is published at a fixed address; pass yours with --weights")
    url = f"https://huggingface.co/xdecoder/SEEM/resolve/main/{variant.filename}"
    return str(fetch(str(spec), url, None, variant.filename))
