"""``openclip/<any model>@<any tag>``: the image tower of an OpenCLIP model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from medprobe.encoders.base import TOKENS, Card, Encoder, LoadOptions, Preprocess, flat_tokens
from medprobe.encoders.hub import hub_file
from medprobe.encoders.registry import Spec
from medprobe.encoders.timm import N_BLOCKS, evenly_spaced, token_views
from medprobe.encoders.vit import CLIP_MEAN, CLIP_STD
from medprobe.encoders.weights import load_strictly, read_checkpoint, state_dict_of
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

_HUB = "hf-hub:"
_BIOMEDCLIP = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
_BIOMEDCLIP_REVISION = "9f341de24bfb00180f1b847274256e9b65a3a32e"
_BIOMEDCLIP_CONFIG = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
}
_CROPS: dict[str, Any] = {"shortest": "center", "longest": "pad", "squash": "none"}
_CITATION = "Ilharco et al., OpenCLIP, 2021, doi:10.5281/zenodo.5143773; Radford et al., CLIP, ICML 2021"


@dataclass(frozen=True)
class _Source:
    """Where a model's configuration and weights come from."""

    config: dict[str, Any]
    preprocess: dict[str, Any]
    repo: str = ""
    filename: str = ""
    revision: str | None = None
    quick_gelu: bool = False
    card: Card = field(default_factory=Card)


class OpenClipEncoder(Encoder):
    """The image tower of an OpenCLIP model.

    Views: ``projected`` (default), the embedding that is compared with captions, not scaled to unit length;
    ``pooled``, the same before the projection, where there is one; ``mean`` of the patch tokens after the final norm
    (before it, where an attention pool comes first, as in CoCa), and ``blocks`` of four evenly spaced blocks.
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
        self._tower: Any = module
        self.freeze()
        with torch.inference_mode():
            views = self.forward_views(torch.zeros(1, 3, *preprocess.geometry.size))
        self.views = {view: int(x.shape[1]) for view, x in views.items() if view != TOKENS}
        self.default_view = "projected"

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the views that the class describes."""
        if hasattr(self._tower, "trunk"):
            return self._views_of_timm(pixels)
        if hasattr(self._tower, "transformer"):
            return self._views_of_vit(pixels)
        return {"projected": self._tower(pixels)}

    def _views_of_vit(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        tower = self._tower
        depth = len(tower.transformer.resblocks)
        indices = evenly_spaced(depth) if depth >= N_BLOCKS else []
        tokens, blocks = tower.transformer.forward_intermediates(tower._embeds(pixels), indices=indices or None)
        pooled, _ = tower._pool(tokens)
        norm = tower.ln_post if tower.attn_pool is None else torch.nn.Identity()
        views = {
            "projected": pooled @ tower.proj,
            "pooled": pooled,
            "mean": norm(tokens)[:, 1:].float().mean(dim=1),
            **flat_tokens(norm(tokens)[:, 1:]),
        }
        if indices:
            normed = [norm(block).float() for block in blocks]
            views["blocks"] = torch.cat([part for x in normed for part in (x[:, 0], x[:, 1:].mean(dim=1))], dim=1)
        return views

    def forward_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return patch tokens (B, patches, width); of OpenCLIP's own transformers, those before the final norm."""
        if not hasattr(self._tower, "transformer"):
            return super().forward_tokens(pixels)
        tokens: torch.Tensor = self._tower.transformer(self._tower._embeds(pixels))
        return tokens[:, 1:]

    def released_state(self) -> dict[str, torch.Tensor]:
        """Return the tower's weights with the keys of a whole model."""
        return {f"visual.{key}": value for key, value in super().released_state().items()}

    def _views_of_timm(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        trunk, head = self._tower.trunk, self._tower.head
        features, token = token_views(trunk, pixels)
        views = {"projected": head(trunk.forward_head(features))}
        projects = any(True for part in (head, trunk.get_classifier()) for _ in part.parameters())
        pooled = trunk.forward_head(features, pre_logits=True) if projects else None
        if pooled is not None and pooled.ndim == 2:  # else the head pools as well
            views["pooled"] = pooled
        return {**views, **{view: token[view] for view in ("mean", "blocks", TOKENS) if view in token}}


def load(spec: Spec, options: LoadOptions) -> OpenClipEncoder:
    """Return the image tower of an OpenCLIP model; the text tower is never built.

    Raises:
        UsageError: There is no such model or tag, or its weights are out of reach.
        DataError: The weights file does not fit.

    """
    source = _source(spec, options)
    config = source.config
    native = _side(config["vision_cfg"]["image_size"])
    size = options.image_size or native
    file = options.weights or str(
        hub_file(str(spec), source.repo, source.filename, source.revision, "open_clip_pytorch_model.bin")
    )
    state = state_dict_of(read_checkpoint(file), prefix="visual.")
    tower = build_tower(config, state, size, str(spec), quick_gelu=source.quick_gelu)
    architecture = f"open_clip:{spec.name}" + ("; QuickGELU" if source.quick_gelu else "")
    if size != native:
        architecture += "; position table bicubic to size, antialias on"
    preprocess = preprocess_of(source.preprocess, size, options)
    return OpenClipEncoder(str(spec), tower, preprocess, source.card, architecture)


def build_tower(
    config: dict[str, Any], state: dict[str, torch.Tensor], size: int, what: str, *, quick_gelu: bool
) -> torch.nn.Module:
    """Return open_clip's image tower for a model configuration, with the ``visual.`` part of its checkpoint.

    At another size than the configuration's, the position table is resized by open_clip's own code.
    """
    from open_clip import model as open_clip_model

    native = _side(config["vision_cfg"]["image_size"])
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    is_timm = bool(vision.get("timm_model_name"))
    if not is_timm:
        vision["image_size"] = size
        if size != native and isinstance(vision["layers"], list):
            raise UsageError(f"--image-size {size}: {what} takes {native} only")
    # A whole model would build the text tower too, and ask the hub for its configuration.
    tower: Any = open_clip_model._build_vision_tower(config["embed_dim"], vision, quick_gelu)
    if "positional_embedding" in state:
        prefixed = {"visual.positional_embedding": state["positional_embedding"]}
        open_clip_model.resize_pos_embed(prefixed, SimpleNamespace(visual=tower))
        state = {**state, "positional_embedding": prefixed["visual.positional_embedding"]}
    load_strictly(tower, state, what)
    if is_timm and size != native:
        tower.set_input_size(size)
    module: torch.nn.Module = tower
    return module


def preprocess_of(config: dict[str, Any], size: int, options: LoadOptions) -> Preprocess:
    """Return open_clip's evaluation preprocessing, spelled out: ``shortest``, ``longest`` or ``squash``."""
    mode = config.get("resize_mode") or "shortest"
    resize: int | tuple[int, int] | None = {"shortest": size, "longest": None, "squash": (size, size)}[mode]
    geometry = Geometry(
        size=(size, size),
        resize=resize,
        crop=_CROPS[mode],
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        exact_decode=options.exact_decode,
    )
    return Preprocess(geometry, tuple(config.get("mean") or CLIP_MEAN), tuple(config.get("std") or CLIP_STD))


def _source(spec: Spec, options: LoadOptions) -> _Source:
    if spec.name == "biomedclip":
        return _biomedclip(spec)
    if spec.name.startswith(_HUB):
        return _from_hub(spec)
    return _from_open_clip(spec, options)


def _from_open_clip(spec: Spec, options: LoadOptions) -> _Source:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    config = open_clip.get_model_config(spec.name)
    if config is None:
        near = [name for name in open_clip.list_models() if spec.name.lower() in name.lower()][:5]
        close = ", ".join(near) or "see open_clip.list_models()"
        raise UsageError(f"--model {spec}: open_clip has no model '{spec.name}' (near: {close})")
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(spec.name)) or "none"
    if spec.tag is None:
        if options.weights is None:
            raise UsageError(f"--model {spec}: name the weights as {spec}@<tag> (tags: {tags}) or pass --weights")
        return _Source(config, {}, quick_gelu=bool(config.get("quick_gelu")), card=Card(citation=_CITATION))
    tag = get_pretrained_cfg(spec.name, spec.tag)
    if not tag:
        raise UsageError(f"--model {spec}: open_clip has no tag '{spec.tag}' for {spec.name} (tags: {tags})")
    repo, _, filename = str(tag.get("hf_hub") or "").rpartition("/")
    card = Card(
        licence="MIT" if spec.tag.startswith(("laion", "openai")) else "see its page",
        citation=_CITATION,
        training_data=spec.tag,
        url=f"https://huggingface.co/{repo}" if repo else str(tag.get("url", "")),
    )
    # The tag says which activation its weights were trained with; the plain configuration may say another.
    return _Source(
        config,
        tag,
        repo,
        filename or "open_clip_model.safetensors",
        quick_gelu=bool(tag.get("quick_gelu")),
        card=card,
    )


def _from_hub(spec: Spec) -> _Source:
    repo = spec.name.removeprefix(_HUB)
    file = hub_file(str(spec), repo, "open_clip_config.json", spec.tag)
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    model = config["model_cfg"]
    return _Source(
        model,
        config.get("preprocess_cfg", {}),
        repo,
        "open_clip_model.safetensors",
        spec.tag,
        bool(model.get("quick_gelu")),
        Card(citation=_CITATION, url=f"https://huggingface.co/{repo}"),
    )


def _biomedclip(spec: Spec) -> _Source:
    card = Card(
        licence="MIT",
        citation="Zhang et al., A Multimodal Biomedical Foundation Model Trained from Fifteen Million "
        "Image-Text Pairs, NEJM AI 2025",
        training_data="PMC-15M: 15 million figures with captions from PubMed Central",
        url=f"https://huggingface.co/{_BIOMEDCLIP}",
    )
    revision = spec.tag or _BIOMEDCLIP_REVISION
    return _Source(_BIOMEDCLIP_CONFIG, {}, _BIOMEDCLIP, "open_clip_pytorch_model.bin", revision, card=card)


def _side(image_size: Any) -> int:
    return int(image_size[0] if isinstance(image_size, (list, tuple)) else image_size)


def catalogue() -> dict[str, str]:
    """Return name and one line of some models of the family."""
    return {
        "openclip/<any>@<any tag>": "every model of open_clip, or openclip/hf-hub:<repo>",
        "openclip/ViT-B-16@laion2b_s34b_b88k": "CLIP ViT-B/16, LAION-2B",
        "openclip/ViT-L-14@openai": "CLIP ViT-L/14 of OpenAI",
        "openclip/biomedclip": "BiomedCLIP ViT-B/16, 15 million figures of PubMed Central",
    }
