"""``sam2/tiny|small|base-plus|large``: the image encoder of SAM 2.1."""

from __future__ import annotations

from typing import Any

import timm
import torch

from medprobe.encoders.base import Card, Encoder, LoadOptions, Preprocess, flat_tokens
from medprobe.encoders.registry import Spec
from medprobe.encoders.vit import IMAGENET_MEAN, IMAGENET_STD, State, check_size, without_prefix
from medprobe.encoders.weights import fetch, load_strictly, read_checkpoint, state_dict_of
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

_STEP = 32  # pixels: its windowed position table is laid out in tiles of 8 patches of 4 pixels
_FIRST_BLOCK = "patch_embed.proj.weight"
MODELS = {
    "tiny": "sam2_hiera_tiny",
    "small": "sam2_hiera_small",
    "base-plus": "sam2_hiera_base_plus",
    "large": "sam2_hiera_large",
}
_CARD = Card(
    licence="Apache-2.0",
    citation="Ravi et al., SAM 2: Segment Anything in Images and Videos, ICLR 2025",
    training_data="SA-1B (11 million images) and SA-V (51,000 videos) with masks; initialised from MAE Hiera",
    url="https://github.com/facebookresearch/sam2",
)


class Sam2Encoder(Encoder):
    """SAM 2's image encoder before its neck.

    Views: ``mean`` over the map of the last stage, and ``stages``, the means over all four, the finest first. There is
    no norm after the stages, as in the original.
    """

    reentrant = True

    def __init__(self, name: str, module: torch.nn.Module, preprocess: Preprocess, architecture: str) -> None:
        self.name = name
        self.module = module
        self.preprocess = preprocess
        self.card = _CARD
        self.architecture = architecture
        self._model: Any = module
        stages: Any = module.feature_info
        widths = [stage["num_chs"] for stage in stages]
        self.views = {"mean": widths[-1], "stages": sum(widths)}
        self.default_view = "mean"
        self.freeze()

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``mean``, ``stages`` and ``tokens``."""
        stages = self._model.forward_intermediates(pixels, intermediates_only=True)
        means = [stage.float().mean(dim=(2, 3)) for stage in stages]
        return {"mean": means[-1], "stages": torch.cat(means, dim=1), **flat_tokens(stages[-1])}


def load(spec: Spec, options: LoadOptions) -> Sam2Encoder:
    """Return SAM 2's image encoder from the official ``.pt`` (whole model) or timm's file."""
    if spec.name not in MODELS or spec.tag:
        raise UsageError(f"--model {spec}: the family sam2 has {', '.join(MODELS)}")
    size = options.image_size or 1024
    check_size(size, _STEP, str(spec))
    architecture = MODELS[spec.name]
    state = state_dict_of(read_checkpoint(options.weights or _official_file(spec)))
    geometry = Geometry(
        size=(size, size),
        resize=(size, size),
        crop="none",
        interpolation="bilinear",
        exact_decode=options.exact_decode,
    )
    return Sam2Encoder(
        str(spec),
        network(architecture, state, str(spec)),
        Preprocess(geometry, IMAGENET_MEAN, IMAGENET_STD),
        architecture=f"timm:{architecture}; position table bicubic to size, antialias off",
    )


def network(architecture: str, state: State, what: str, **config: Any) -> torch.nn.Module:
    """Return timm's network with the image encoder of an official checkpoint, or timm's."""
    module: Any = timm.create_model(architecture, num_classes=0, **config)
    module.head = torch.nn.Identity()  # timm's has a norm that SAM 2 lacks
    own = without_prefix(state, _FIRST_BLOCK)
    renamed = {
        key.replace(".mlp.layers.0.", ".mlp.fc1.").replace(".mlp.layers.1.", ".mlp.fc2."): value
        for key, value in own.items()
        if not key.startswith("head.")
    }
    load_strictly(module, renamed, what)
    loaded: torch.nn.Module = module
    return loaded


def catalogue() -> dict[str, str]:
    """Return name and one line of each model of the family."""
    return {f"sam2/{name}": "SAM 2.1 image encoder, Hiera" for name in MODELS}


def _official_file(spec: Spec) -> str:
    filename = f"sam2.1_hiera_{spec.name.replace('-', '_')}.pt"
    return str(fetch(str(spec), f"https://dl.fbaipublicfiles.com/segment_anything_2/092824/{filename}", None, filename))
