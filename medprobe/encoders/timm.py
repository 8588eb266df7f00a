"""``timm/<any model name>[@tag]``: every image encoder of the timm library."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from medprobe.encoders.base import TOKENS, Card, Encoder, LoadOptions, Preprocess, flat_tokens, pool_tokens
from medprobe.encoders.hub import hub_file
from medprobe.encoders.registry import Spec
from medprobe.encoders.vit import check_size
from medprobe.encoders.weights import load_strictly, read_checkpoint, state_dict_of
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

N_BLOCKS = 4


class TimmEncoder(Encoder):
    """A timm model without its classifier.

    Views of a transformer: ``cls``, ``mean`` (of patch tokens), ``cls+mean``, ``blocks`` (class token and mean of patch
    tokens of four evenly spaced blocks, each through the final norm, as DINOv2's evaluation takes them; the means
    alone without a class token) and, where the model was trained with another pooling than the class token, that one
    as ``pooled``. A convolutional or windowed network has one view, ``mean``: the vector that its classifier sees.
    """

    reentrant = True

    def __init__(
        self, name: str, module: torch.nn.Module, preprocess: Preprocess, card: Card, architecture: str
    ) -> None:
        self.name = name
        self.module = module
        self.preprocess = preprocess
        self.card = card
        self.architecture = architecture
        self._model: Any = module
        self._pools_cls = _has_cls(module) and getattr(module, "global_pool", "") == "token"
        self.freeze()
        with torch.inference_mode():
            views = self.forward_views(torch.zeros(1, 3, *preprocess.geometry.size))
        self.views = {view: int(x.shape[1]) for view, x in views.items() if view != TOKENS}
        self.default_view = "cls" if self._pools_cls else ("pooled" if "pooled" in views else "mean")

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the views that the class describes."""
        features, views = token_views(self._model, pixels)
        if not views:
            return {"mean": self._model.forward_head(features, pre_logits=True)}
        return {**views, **self.own_views(features)}

    def own_views(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the views beyond those of every transformer, for tokens (B, prefix + patches, width)."""
        return {} if self._pools_cls else {"pooled": self._model.forward_head(tokens, pre_logits=True)}


def token_views(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return a timm model's last features and, if these are tokens, the views that every transformer has."""
    plain = isinstance(model, (VisionTransformer, Eva, Beit)) and len(model.blocks) >= N_BLOCKS
    blocks: list[Any] = []
    if plain:
        features, blocks = model.forward_intermediates(
            pixels, indices=evenly_spaced(len(model.blocks)), norm=True, return_prefix_tokens=True, output_fmt="NLC"
        )
    else:
        features = model.forward_features(pixels)
    if features.ndim != 3:
        return features, {}
    n_prefix, has_cls = int(getattr(model, "num_prefix_tokens", 0) or 0), _has_cls(model)
    views = {**pool_tokens(features, n_prefix, has_cls), **flat_tokens(features[:, n_prefix:])}
    parts = []
    for block in blocks:
        patches, prefix = block if n_prefix else (block, None)
        parts += [prefix[:, 0].float()] if has_cls and prefix is not None else []
        parts.append(patches.float().mean(dim=1))
    if parts:
        views["blocks"] = torch.cat(parts, dim=1)
    return features, views


def _has_cls(model: torch.nn.Module) -> bool:
    return getattr(model, "cls_token", None) is not None


def evenly_spaced(depth: int) -> list[int]:
    """Return the indices of four evenly spaced blocks of ``depth``, the last one included: 2, 5, 8, 11 of twelve."""
    return [(i + 1) * depth // N_BLOCKS - 1 for i in range(N_BLOCKS)]


def load(spec: Spec, options: LoadOptions) -> TimmEncoder:
    """Return a timm model with its published weights, or those of ``options.weights``."""
    name = spec.name + (f".{spec.tag}" if spec.tag else "")
    if not timm.is_model(spec.name):
        close = ", ".join(timm.list_models(f"*{spec.name}*")[:5]) or "see timm.list_models()"
        raise UsageError(f"--model {spec}: timm has no model '{spec.name}' (near: {close})")
    return load_named(str(spec), name, options)


def load_named(model: str, name: str, options: LoadOptions, card: Card | None = None) -> TimmEncoder:
    """Return the timm model ``name``, a tag included, under the name ``model``."""
    file = options.weights or published_file(model, name)
    module = create(model, name, options.image_size)
    load_weights(module, file, model)
    return wrap(model, module, options, card=card)


def create(model: str, name: str, image_size: int | None = None) -> torch.nn.Module:
    """Return a timm model without classifier and with random weights, at its own or another image size.

    Raises:
        UsageError: The name has an unknown tag, or the model cannot take that size.

    """
    published_config(model, name)
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        module: torch.nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **size)
    except TypeError:  # a convolutional network takes any size and has no such argument
        return create(model, name)
    except (AssertionError, ValueError) as error:
        raise UsageError(f"--image-size {image_size}: {model} cannot take it ({error})") from error
    if image_size is not None and isinstance(module, (VisionTransformer, Eva, Beit)):
        check_size(image_size, module.patch_embed.patch_size[0], model)
    return module


def published_config(model: str, name: str) -> dict[str, Any]:
    """Return what timm knows of the weights ``name``: where they are, and how they want their pixels.

    Raises:
        UsageError: timm has no such tag.

    """
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")) or "none"
        raise UsageError(f"--model {model}: {error} (timm has: {tags})") from error
    return dataclasses.asdict(config) if config else {}


def config_of(module: torch.nn.Module) -> dict[str, Any]:
    """Return timm's own description of a model: preprocessing, licence, where its weights are."""
    config: Any = module.pretrained_cfg
    return dict(config)


def published_file(model: str, name: str) -> str:
    """Return the file of the weights that timm publishes under a name.

    Raises:
        UsageError: There are none, or they are neither in the local cache nor within reach.

    """
    config = published_config(model, name)
    repo = config.get("hf_hub_id")
    if not repo:
        raise UsageError(f"--model {model}: timm publishes no weights for it on the hub; pass a file with --weights")
    repo, _, revision = str(repo).partition("@")
    filename = config.get("hf_hub_filename") or "model.safetensors"
    return str(hub_file(model, repo, filename, revision or None, "pytorch_model.bin"))


def load_weights(module: torch.nn.Module, file: str, what: str) -> None:
    """Load a checkpoint in timm's or the authors' own key layout; a classifier in it is left out."""
    state = state_dict_of(read_checkpoint(file))
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        state = convert(state, module)
    classifier = config_of(module).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    own = module.state_dict()
    kept = {k: v for k, v in state.items() if k in own or not k.startswith(tuple(f"{head}." for head in heads))}
    # Files from before PyTorch 0.4.1 lack these counters, which nothing reads in evaluation mode.
    counters = {k: v for k, v in own.items() if k.endswith(".num_batches_tracked")}
    load_strictly(module, {**counters, **kept}, what)


def wrap(
    name: str,
    module: torch.nn.Module,
    options: LoadOptions,
    preprocess: Preprocess | None = None,
    card: Card | None = None,
) -> TimmEncoder:
    """Return an encoder around a timm model, with the preprocessing that its configuration states unless given."""
    config = config_of(module)
    card = card or Card(
        licence=str(config.get("license") or "unknown"),
        citation=str(config.get("paper_name") or config.get("paper_ids") or ""),
        training_data=str(config.get("tag") or "unknown"),
        url=f"https://huggingface.co/{config['hf_hub_id']}" if config.get("hf_hub_id") else "",
    )
    architecture = f"timm:{config.get('architecture')}"
    if getattr(module, "pos_embed", None) is not None:
        architecture += "; position table bicubic to size, antialias on"
    return TimmEncoder(name, module, preprocess or preprocess_of(config, options), card, architecture)


def preprocess_of(config: Mapping[str, Any], options: LoadOptions) -> Preprocess:
    """Return timm's evaluation preprocessing, spelled out."""
    height, width = config["input_size"][1:]
    if options.image_size:
        height = width = options.image_size
    part = config.get("crop_pct") or 0.875
    resize: int | tuple[int, int] | None = math.floor(min(height, width) / part)
    mode = config.get("crop_mode") or "center"
    if mode == "squash" or height != width:
        resize = (math.floor(height / part), math.floor(width / part))
    elif mode == "border":
        resize = None
    return Preprocess(
        geometry=Geometry(
            size=(height, width),
            resize=resize,
            crop="pad" if mode == "border" else "center",
            interpolation=config.get("interpolation") or "bicubic",
            exact_decode=options.exact_decode,
        ),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def catalogue() -> dict[str, str]:
    """Return a line about the family: its models are listed by timm itself."""
    n_models, n_weights = len(timm.list_models()), len(timm.list_pretrained())
    return {"timm/<any>": f"{n_models} architectures of timm {timm.__version__}, {n_weights} with weights"}
