"""``hf/<repo or local folder>[@revision]``: any vision model that transformers itself knows."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from medprobe.encoders.base import TOKENS, Card, Encoder, LoadOptions, Preprocess, flat_tokens, pool_tokens
from medprobe.encoders.hub import hub_folder
from medprobe.encoders.processor import preprocess_of
from medprobe.encoders.registry import Spec
from medprobe.encoders.timm import N_BLOCKS, evenly_spaced
from medprobe.encoders.weights import load_strictly, read_checkpoint, state_dict_of
from medprobe.errors import DataError, UsageError


@dataclass(frozen=True)
class Alias:
    """A model with a short name: repository, pinned revision where one is known to be good, and card."""

    repo: str
    card: Card
    line: str
    revision: str | None = None


ALIASES = {
    "rad-dino": Alias(
        "microsoft/rad-dino",
        Card(
            licence="MSRLA (research only)",
            citation="Pérez-García et al., Exploring Scalable Medical Image Encoders Beyond Text Supervision, "
            "Nature Machine Intelligence 2025",
            training_data="838,336 chest X-rays: MIMIC-CXR, CheXpert, NIH-CXR, PadChest, BRAX; DINOv2 continued",
            url="https://huggingface.co/microsoft/rad-dino",
        ),
        "RAD-DINO ViT-B/14, chest X-rays",
        revision="110cbc18d5133582e320b43d53bf5c44e410c936",
    ),
    "medsiglip": Alias(
        "google/medsiglip-448",
        Card(
            licence="Health AI Developer Foundations terms (on request)",
            citation="Sellergren et al., MedGemma Technical Report, arXiv 2507.05201",
            training_data="chest X-rays, dermatology, ophthalmology, histology, CT and MR slices with their text",
            url="https://huggingface.co/google/medsiglip-448",
        ),
        "MedSigLIP SO400M/14, many modalities; on request",
    ),
    "pubmedclip": Alias(
        "flaviagiammarino/pubmed-clip-vit-base-patch32",
        Card(
            licence="MIT",
            citation="Eslami et al., PubMedCLIP: How Much Does CLIP Benefit Visual Question Answering in the Medical "
            "Domain?, Findings of EACL 2023",
            training_data="ROCO: 80,000 radiology figures with captions; CLIP continued",
            url="https://huggingface.co/flaviagiammarino/pubmed-clip-vit-base-patch32",
        ),
        "PubMedCLIP ViT-B/32, radiology figures of PubMed",
    ),
    "phikon": Alias(
        "owkin/phikon",
        Card(
            licence="Owkin non-commercial",
            citation="Filiot et al., Scaling Self-Supervised Learning for Histopathology with Masked Image Modeling, "
            "medRxiv 2023",
            training_data="43 million tiles of 6,093 TCGA histology slides, iBOT",
            url="https://huggingface.co/owkin/phikon",
        ),
        "Phikon ViT-B/16, histology",
    ),
}
_FINAL_NORMS = ("layernorm", "post_layernorm", "norm", "layer_norm")
_CLASS_TOKENS = ("cls_token", "class_embedding")


class HuggingFaceEncoder(Encoder):
    """The image tower of a transformers model.

    Views, as the architecture has them: ``cls`` and ``mean`` (of patch tokens), ``cls+mean`` and ``blocks``, all after
    the final norm; ``pooled``, what the model itself pools to, unless that is ``cls``; ``projected``, its embedding in
    the space of captions. Default: ``projected``, else ``cls``, else ``pooled``.
    """

    reentrant = True

    def __init__(
        self,
        name: str,
        module: Tower,
        preprocess: Preprocess,
        card: Card,
        architecture: str,
    ) -> None:
        self.name = name
        self.module = module
        self.preprocess = preprocess
        self.card = card
        self.architecture = architecture
        self.freeze()
        probe = torch.randn(1, 3, *preprocess.geometry.size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            views = module(probe)
        if "cls" in views and "pooled" in views and torch.equal(views["cls"], views["pooled"].float()):
            del views["pooled"]
        self.views = {view: int(x.shape[1]) for view, x in views.items() if view != TOKENS}
        self.default_view = next(view for view in ("projected", "cls", "pooled", "mean") if view in views)

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the views that the class describes."""
        views: dict[str, torch.Tensor] = self.module(pixels)
        return views


class Tower(torch.nn.Module):
    """The vision part of a transformers model; the text part is let go.

    Args:
        model: As ``AutoModel`` loads it.
        pools: Whether the model's own pooling has trained weights.
        native: Whether input has the size of the position table, so that it need not be resized.
        size: Height and width of the input.

    """

    def __init__(self, model: Any, *, pools: bool, native: bool, size: tuple[int, int]) -> None:
        super().__init__()
        self.vision: Any = getattr(model, "vision_model", model)
        projection = getattr(model, "visual_projection", None)
        self.projection = projection if isinstance(projection, torch.nn.Module) else None
        self._pools = pools
        config = self.vision.config
        names = {name.rpartition(".")[2] for name, _ in self.vision.named_parameters()}
        self._has_cls = not names.isdisjoint(_CLASS_TOKENS)
        self._n_prefix = int(self._has_cls) + int(getattr(config, "num_register_tokens", 0) or 0)
        self._norm: Any = next((m for n in _FINAL_NORMS if (m := getattr(self.vision, n, None)) is not None), None)
        resizes = "interpolate_pos_encoding" in inspect.signature(self.vision.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if resizes and not native else {}
        self._norms_tokens = self._norm is None or self._sees_norm_of_tokens(size)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the views of normalised pixels (B, 3, H, W)."""
        out = self.vision(pixel_values=pixels, output_hidden_states=True, **self._options)
        tokens, pooled = out.last_hidden_state, getattr(out, "pooler_output", None)
        views: dict[str, torch.Tensor] = {}
        if tokens.ndim == 3:
            # CLIP alone norms after it has taken its class token; its other tokens go through the same norm here.
            tokens = tokens if self._norms_tokens else self._norm(tokens)
            views = {**pool_tokens(tokens, self._n_prefix, self._has_cls), **self._blocks(tokens, out.hidden_states)}
            views |= flat_tokens(tokens[:, self._n_prefix :])
        if pooled is not None and self._pools:
            views["pooled"] = pooled.flatten(1)
        elif not views:
            views["pooled"] = tokens.mean(dim=(2, 3))
        if self.projection is not None and pooled is not None:
            views["projected"] = self.projection(pooled)
        return views

    @torch.inference_mode()
    def _sees_norm_of_tokens(self, size: tuple[int, int]) -> bool:
        """Return whether the model's last hidden state comes out of its final norm."""
        normed: list[torch.Tensor] = []
        hook = self._norm.register_forward_hook(lambda _module, _input, out: normed.append(out))
        out = self.vision(pixel_values=torch.zeros(1, 3, *size), **self._options)
        hook.remove()
        return any(x is out.last_hidden_state for x in normed)

    def _blocks(self, last: torch.Tensor, hidden: tuple[torch.Tensor, ...] | None) -> dict[str, torch.Tensor]:
        """Return ``blocks``: of the output of four evenly spaced blocks, each through the final norm."""
        if hidden is None or self._norm is None or len(hidden) - 1 < N_BLOCKS:
            return {}
        indices = evenly_spaced(len(hidden) - 1)
        if any(hidden[i + 1].shape != last.shape for i in indices):  # a pyramid has no common norm
            return {}
        parts = []
        for tokens in (*(self._norm(hidden[i + 1]) for i in indices[:-1]), last):
            pooled = pool_tokens(tokens, self._n_prefix, self._has_cls)
            parts += [pooled["cls"], pooled["mean"]] if self._has_cls else [pooled["mean"]]
        return {"blocks": torch.cat(parts, dim=1)}


def load(spec: Spec, options: LoadOptions) -> HuggingFaceEncoder:
    """Return a model of the hub, of a local folder as ``save_pretrained`` writes it, or of ``options.weights``.

    Raises:
        UsageError: The model is out of reach, given out on request, or needs code of its own, which is never run.
        DataError: Weights are missing from the folder.

    """
    alias = ALIASES.get(spec.name)
    repo = alias.repo if alias else spec.name
    revision = spec.tag or (alias.revision if alias else None)
    tuned = _state_of_tower(options.weights)
    folder = _folder(spec, repo, revision, None if tuned else options.weights)
    preprocess = preprocess_of(folder, str(spec), options)
    module = _tower(folder, str(spec), preprocess.geometry.size)
    if tuned:
        load_strictly(module, tuned, str(spec))
    architecture = f"transformers:{type(module.vision).__name__}"
    if module._options:
        architecture += "; position table resized by transformers"
    url = "" if Path(repo).is_dir() else f"https://huggingface.co/{repo}"
    return HuggingFaceEncoder(str(spec), module, preprocess, alias.card if alias else Card(url=url), architecture)


def _state_of_tower(weights: str | None) -> dict[str, torch.Tensor]:
    """Return the state of a :class:`Tower` that a file by itself holds, as fine-tuning writes it; else nothing."""
    file = Path(weights or "")
    if file.suffix != ".safetensors" or not file.is_file() or (file.parent / "config.json").is_file():
        return {}
    state = state_dict_of(read_checkpoint(file))
    return state if state and all(key.startswith(("vision.", "projection.", "_norm.")) for key in state) else {}


def _folder(spec: Spec, repo: str, revision: str | None, weights: str | None) -> Path:
    if weights is not None:
        path = Path(weights)
        folder = path if path.is_dir() else path.parent
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"--weights: {spec} needs config.json and preprocessor_config.json beside {path.name}: "
                "pass a folder as save_pretrained writes it"
            )
        return folder
    if Path(repo).is_dir():
        return Path(repo)
    if repo.startswith((".", "/", "~")) or repo.count("/") != 1:
        raise UsageError(f"--model {spec}: '{repo}' is neither a folder nor a repository such as microsoft/rad-dino")
    return hub_folder(str(spec), repo, revision)


def _tower(folder: Path, what: str, size: tuple[int, int]) -> Tower:
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging

    has_safetensors = any(folder.glob("*.safetensors"))
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if config.model_type == "vit_mae":
            raise UsageError(
                f"--model {what}: this architecture hides patches at random; take mae/vitb16 --weights FILE"
            )
        model, info = AutoModel.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=has_safetensors,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except ValueError as error:
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            raise UsageError(f"--model {what}: it needs code of its own, which medprobe never runs") from error
        raise UsageError(f"--model {what}: transformers cannot load it: {error}") from error
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise DataError(f"--model {what}: {folder} cannot be loaded: {error}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    missing = sorted(info["missing_keys"])
    serious = [key for key in missing if "pooler." not in key]
    if serious:
        raise DataError(f"--model {what}: {len(serious)} weights are not in its file (first: {', '.join(serious[:3])})")
    vision = getattr(model.config, "vision_config", model.config)
    table = getattr(vision, "image_size", None)
    native = table is None or size == (tuple(table) if isinstance(table, (list, tuple)) else (table, table))
    return Tower(model.eval(), pools=not missing, native=native, size=size)


def catalogue() -> dict[str, str]:
    """Return name and one line of each alias, and of the family."""
    named = {f"hf/{name}": alias.line for name, alias in ALIASES.items()}
    return {"hf/<repo or folder>[@revision]": "any vision model of transformers, without remote code", **named}
