"""``sam/vit_b|vit_l|vit_h``: the image encoder of the Segment Anything Model, at 224 pixels unless asked otherwise.

224 is what comparisons of frozen encoders use, and costs a twentieth of SAM's own 1024 (``--image-size 1024``). Below
1024 the position tables are resized: the absolute one bicubic with antialiasing, the relative ones of the four global
blocks linear, as SAM's own code does with the latter. ``sam/vit_b@huix2024`` resizes these to the nearest value instead,
as Palés Huix et al. (WACV 2024) do.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn
from torch.nn import functional

from medprobe.encoders.base import Card, Encoder, LoadOptions, Preprocess, flat_tokens
from medprobe.encoders.registry import Spec
from medprobe.encoders.timm import evenly_spaced
from medprobe.encoders.vit import IMAGENET_MEAN, IMAGENET_STD, State, check_size, without_prefix
from medprobe.encoders.weights import fetch, load_strictly, read_checkpoint, state_dict_of
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

PATCH = 16
HUIX2024 = "huix2024"
NATIVE = 1024  # pixels: the side of the position tables
SIZES = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
# The digits in the names of the files are of their MD5.
_FILES = {
    "vit_b": ("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    "vit_l": ("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit_h": ("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
}
_NORM: Any = partial(nn.LayerNorm, eps=1e-6)
_CARD = Card(
    licence="Apache-2.0",
    citation="Kirillov et al., Segment Anything, ICCV 2023",
    training_data="SA-1B: 11 million images with 1.1 billion masks, without class labels; initialised from MAE",
    url="https://github.com/facebookresearch/segment-anything",
)


class SamViT(VisionTransformerSAM):
    """SAM's vision transformer with tables for 1024 pixels, for any input that its patches divide."""

    def __init__(self, embed_dim: int, depth: int, num_heads: int) -> None:
        super().__init__(
            img_size=NATIVE,
            patch_size=PATCH,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=0,
            norm_layer=_NORM,
            use_rel_pos=True,
            global_attn_indexes=tuple(evenly_spaced(depth)),
        )


class SamEncoder(Encoder):
    """SAM's image encoder, which has no class token and, before its neck, no final norm.

    Views: ``mean`` of the last block's tokens, ``neck``, the mean over the map that SAM's mask decoder sees, and
    ``blocks``, the means of the tokens of the four blocks with global attention, the last one included.

    At 1024 pixels the whole image is fitted in, as SAM does it; it is centred on black, where SAM puts it top left and
    fills the rest with the mean colour, so the two agree for square images alone. At other sizes the image is squashed
    to 256/224 of the size and the centre is taken.
    """

    reentrant = True

    def __init__(self, name: str, module: SamViT, preprocess: Preprocess, architecture: str) -> None:
        self.name = name
        self.module = module
        self.preprocess = preprocess
        self.card = _CARD
        self.architecture = architecture
        self._model = module
        self._blocks = evenly_spaced(len(module.blocks))
        width = module.embed_dim
        self.views = {"mean": width, "neck": module.num_features, "blocks": len(self._blocks) * width}
        self.default_view = "mean"
        self.freeze()

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``mean``, ``neck``, ``blocks`` and ``tokens``."""
        neck, blocks = self._model.forward_intermediates(pixels, indices=self._blocks)
        means = [block.float().mean(dim=(2, 3)) for block in blocks]
        pooled = {"mean": means[-1], "neck": neck.float().mean(dim=(2, 3)), "blocks": torch.cat(means, dim=1)}
        return {**pooled, **flat_tokens(blocks[-1])}


def load(spec: Spec, options: LoadOptions) -> SamEncoder:
    """Return SAM's image encoder from the official ``.pth`` (whole model), timm's file or Hugging Face's."""
    if spec.name not in SIZES or spec.tag not in {None, HUIX2024}:
        raise UsageError(f"--model {spec}: the family sam has {', '.join(SIZES)}, each also with @{HUIX2024}")
    size = options.image_size or 224
    check_size(size, PATCH, str(spec))
    if size > NATIVE:
        raise UsageError(f"--image-size {size}: {spec} takes up to {NATIVE}")
    state = state_dict_of(read_checkpoint(options.weights or _official_file(spec)))
    module = network(state, str(spec), nearest=size // PATCH if spec.tag else None, **SIZES[spec.name])
    return SamEncoder(
        str(spec),
        module,
        Preprocess(geometry(size, options.exact_decode), IMAGENET_MEAN, IMAGENET_STD),
        architecture=f"timm:VisionTransformerSAM ({spec.name}); position table bicubic to size, antialias on; "
        f"relative tables {'nearest' if spec.tag else 'linear'}",
    )


def network(state: State, what: str, *, nearest: int | None = None, **config: int) -> SamViT:
    """Return the network of ``config`` with the image encoder of an official checkpoint, timm's or Hugging Face's.

    With ``nearest``, its relative position tables are for so many patches a side, of the nearest values.
    """
    module = SamViT(**config)
    own = timm_layout(state)
    if nearest is not None:
        _resize_relative_tables_to_nearest(module, own, nearest)
    load_strictly(module, own, what, found=state)
    return module


def _resize_relative_tables_to_nearest(module: SamViT, state: State, side: int) -> None:
    """Resize the relative position tables of the blocks with global attention, in place, in a network and its state."""
    blocks: Any = module.blocks
    for i in evenly_spaced(len(blocks)):
        for name in ("rel_pos_h", "rel_pos_w"):
            key = f"blocks.{i}.attn.{name}"
            if key in state:  # else loading says what is missing
                resized = functional.interpolate(state[key].T[None], size=2 * side - 1, mode="nearest")[
                    0
                ].T.contiguous()
                setattr(blocks[i].attn, name, nn.Parameter(torch.empty_like(resized)))
                state[key] = resized


_TO_TIMM = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.", "blocks."),
    (r"^(blocks\.\d+)\.layer_norm", r"\1.norm"),
    (r"\.mlp\.lin", ".mlp.fc"),
    (r"^neck\.conv1\.", "neck.0."),
    (r"^neck\.layer_norm1\.", "neck.1."),
    (r"^neck\.conv2\.", "neck.2."),
    (r"^neck\.layer_norm2\.", "neck.3."),
)


def timm_layout(state: State) -> State:
    """Return the image part of a SAM checkpoint with timm's keys."""
    renamed = {}
    for key, value in without_prefix(state, "pos_embed").items():
        for pattern, replacement in _TO_TIMM:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def geometry(size: int, exact_decode: bool) -> Geometry:
    """Return how an image reaches the network at a size; :class:`SamEncoder` says why."""
    if size == NATIVE:
        return Geometry((size, size), resize=None, crop="pad", interpolation="bilinear", exact_decode=exact_decode)
    side = round(size * 256 / 224)
    return Geometry(
        (size, size), resize=(side, side), crop="center", interpolation="bilinear", exact_decode=exact_decode
    )


def catalogue() -> dict[str, str]:
    """Return name and one line of each model of the family."""
    return {f"sam/{name}": f"SAM image encoder, {name}; also with @{HUIX2024}" for name in SIZES}


def _official_file(spec: Spec) -> str:
    filename, sha256 = _FILES[spec.name]
    return str(fetch(str(spec), f"https://dl.fbaipublicfiles.com/segment_anything/{filename}", sha256, filename))
