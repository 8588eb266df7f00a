"""``dinov3/vits16|vits16plus|vitb16|vitl16|vith16plus``: DINOv3, whose weights its authors hand out on request."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch

from medprobe.encoders.base import Card, LoadOptions, Preprocess
from medprobe.encoders.hub import hub_file
from medprobe.encoders.registry import Spec
from medprobe.encoders.timm import TimmEncoder
from medprobe.encoders.vit import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    State,
    check_size,
    from_huggingface,
    without_prefix,
)
from medprobe.encoders.weights import load_strictly, read_checkpoint, state_dict_of
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

PATCH = 16
# The variants with query and value biases: the released files carry them, all zeros in some.
ARCHITECTURES = {
    "vits16": "vit_small_patch16_dinov3_qkvb",
    "vits16plus": "vit_small_plus_patch16_dinov3_qkvb",
    "vitb16": "vit_base_patch16_dinov3_qkvb",
    "vitl16": "vit_large_patch16_dinov3_qkvb",
    "vith16plus": "vit_huge_plus_patch16_dinov3_qkvb",
}
_CARD = Card(
    licence="DINOv3 licence (on request)",
    citation="Siméoni et al., DINOv3, arXiv 2508.10104",
    training_data="LVD-1689M: 1,689 million curated web images, self-supervised",
    url="https://github.com/facebookresearch/dinov3",
)
_NOT_FOR_INFERENCE = re.compile(r"(^mask_token$|^rope_embed\.|\.bias_mask$|^local_cls_norm\.)")


def load(spec: Spec, options: LoadOptions) -> TimmEncoder:
    """Return a DINOv3 encoder from the official ``.pth``, Hugging Face's or timm's file.

    Its positions are rotary and need no table: every size that the patches divide is exact.
    """
    if spec.name not in ARCHITECTURES or spec.tag:
        raise UsageError(f"--model {spec}: the family dinov3 has {', '.join(ARCHITECTURES)}")
    size = options.image_size or 256
    check_size(size, PATCH, str(spec))
    file = options.weights or hub_file(str(spec), f"facebook/dinov3-{spec.name}-pretrain-lvd1689m", "model.safetensors")
    module = network(ARCHITECTURES[spec.name], state_dict_of(read_checkpoint(file)), str(spec))
    geometry = Geometry(
        size=(size, size),
        resize=(size, size),
        crop="none",
        interpolation="bilinear",
        exact_decode=options.exact_decode,
    )
    return TimmEncoder(
        str(spec),
        module,
        Preprocess(geometry, IMAGENET_MEAN, IMAGENET_STD),
        _CARD,
        architecture=f"timm:{ARCHITECTURES[spec.name]}",
    )


def network(architecture: str, state: State, what: str, **config: Any) -> torch.nn.Module:
    """Return timm's network with an official, Hugging Face or timm state."""
    module: torch.nn.Module = timm.create_model(architecture, num_classes=0, global_pool="token", **config)
    load_strictly(module, timm_layout(state), what)
    return module


def timm_layout(state: State) -> State:
    """Return an official, timm or Hugging Face checkpoint of DINOv3 with timm's keys, recognised by its own."""
    if any(key.endswith("embeddings.cls_token") for key in state):
        state = without_prefix(state, "embeddings.cls_token")
        gated = any(".mlp.gate_proj." in key for key in state)
        names = {"gate_proj": "fc1_g", "up_proj": "fc1_x"} if gated else {}
        for before, after in names.items():
            state = {key.replace(f".mlp.{before}.", f".mlp.{after}."): value for key, value in state.items()}
        state = from_huggingface(state)
    else:
        state = without_prefix(state, "cls_token")
    renamed: State = {}
    for key, value in state.items():
        if _NOT_FOR_INFERENCE.search(key):
            continue
        key = re.sub(r"^(storage_tokens|register_tokens)$", "reg_token", key)
        key = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)
        key = key.replace(".mlp.w1.", ".mlp.fc1_g.").replace(".mlp.w2.", ".mlp.fc1_x.").replace(".mlp.w3.", ".mlp.fc2.")
        if key.endswith(".attn.qkv.bias"):  # the bias of the keys is masked out in the official code
            query, _, values = value.chunk(3)
            renamed[key.replace("qkv.bias", "q_bias")] = query
            renamed[key.replace("qkv.bias", "v_bias")] = values
        else:
            renamed[key] = value
    for key in [key for key in renamed if key.endswith(".attn.qkv.weight")]:  # timm leaves biases of zeros out
        width = renamed[key].shape[1]
        for name in ("q_bias", "v_bias"):
            renamed.setdefault(key.replace("qkv.weight", name), torch.zeros(width))
    return renamed


def catalogue() -> dict[str, str]:
    """Return name and one line of each model of the family."""
    return {f"dinov3/{name}": "DINOv3 ViT, LVD-1689M; on request" for name in ARCHITECTURES}
