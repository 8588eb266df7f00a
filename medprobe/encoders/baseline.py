"""``baseline/...``: what a foundation model has to beat. Raw pixels, and networks that have learned nothing."""

from __future__ import annotations

import torch
from timm.models import is_model
from torch.nn import functional

from medprobe.encoders import timm as timm_family
from medprobe.encoders.base import Card, Encoder, LoadOptions, Preprocess
from medprobe.encoders.registry import Spec
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

RANDOM_SEED = 0
_ALIASES = {"vits16": "vit_small_patch16_224", "vitb16": "vit_base_patch16_224"}


class PixelEncoder(Encoder):
    """The image itself: 16 x 16 pixels of three colours (``pixels``), and their colour statistics (``colour``).

    ``colour`` is mean and standard deviation of each channel: what exposure and stain alone can tell.
    """

    side = 16
    reentrant = True

    def __init__(self, name: str, image_size: int, exact_decode: bool) -> None:
        self.name = name
        self.module = torch.nn.Identity()
        self.preprocess = Preprocess(
            geometry=Geometry(
                size=(image_size, image_size),
                resize=(image_size, image_size),
                crop="none",
                interpolation="bicubic",
                exact_decode=exact_decode,
            ),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )
        self.views = {"pixels": 3 * self.side**2, "colour": 6}
        self.default_view = "pixels"
        self.architecture = f"area mean to {self.side} x {self.side}"
        self.card = Card(licence="Apache-2.0", training_data="none")

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``pixels`` and ``colour``."""
        small = functional.adaptive_avg_pool2d(pixels, self.side)
        colour = torch.cat([pixels.mean(dim=(2, 3)), pixels.std(dim=(2, 3), correction=0)], dim=1)
        return {"pixels": small.flatten(1), "colour": colour}


def load(spec: Spec, options: LoadOptions) -> Encoder:
    """Return ``baseline/pixels``, or ``baseline/random-<timm name>``: that network as initialised with a fixed seed."""
    if options.weights is not None:
        raise UsageError(f"--weights: {spec} has none")
    if spec.name == "pixels":
        return PixelEncoder(str(spec), options.image_size or 64, options.exact_decode)
    kind, _, name = spec.name.partition("random-")
    name = _ALIASES.get(name, name)
    if kind or not name:
        raise UsageError(f"--model {spec}: baseline has pixels and random-<timm name>, such as random-vits16")
    if not is_model(name):
        raise UsageError(f"--model {spec}: timm has no model '{name}'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        module = timm_family.create(str(spec), name, options.image_size)
    card = Card(licence="Apache-2.0", training_data=f"none (random weights, seed {RANDOM_SEED})")
    return timm_family.wrap(str(spec), module, options, card=card)


def catalogue() -> dict[str, str]:
    """Return name and one line of each baseline."""
    return {
        "baseline/pixels": "16 x 16 colour pixels and colour statistics; no network",
        "baseline/random-<timm name>": "an untrained network, such as baseline/random-vits16",
    }
