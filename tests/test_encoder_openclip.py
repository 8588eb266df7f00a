"""OpenCLIP's image towers against open_clip's own whole models, from checkpoints in its own layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_helpers import difference, images, randomised, saved

from medprobe.encoders import openclip
from medprobe.encoders.base import LoadOptions
from medprobe.encoders.registry import load_encoder
from medprobe.errors import DataError, UsageError

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "layers": 4, "width": 48, "head_width": 12, "patch_size": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-quickgelu": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "vit-avg": {
        "embed_dim": 24,
        "vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        "text_cfg": TEXT,
    },
    "coca": {
        "embed_dim": 24,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 4},
        "custom_text": True,
    },
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
    "timm-linear": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "timm-map": {
        "embed_dim": 192,
        "vision_cfg": {
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_pool": "avg",
            "timm_proj": "none",
            "image_size": 224,
        },
        "text_cfg": {**TEXT, "width": 32},
        "custom_text": True,
    },
}


@pytest.fixture(params=CONFIGS)
def case(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any, str]:
    """Name, open_clip's own random model, and its checkpoint as open_clip's training writes it."""
    name = request.param
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, CONFIGS[name])
    model = randomised(open_clip.create_model(name))
    training = {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}, "epoch": 1}
    return name, model, saved(training, tmp_path / "epoch_1.pt")


@pytest.mark.parity("openclip, siglip2, coca", "open_clip's", "open_clip")
def test_projected_equals_encode_image(case: Any) -> None:
    name, model, file = case
    encoder = load_encoder(f"openclip/{name}", LoadOptions(weights=file))
    pixels = images(*encoder.preprocess.geometry.size)
    with torch.inference_mode():
        expected = model.encode_image(pixels, normalize=False)
    assert encoder.default_view == "projected"
    assert difference(encoder.encode(pixels)["projected"], expected) < 1e-4


@pytest.mark.parametrize("case", ["vit", "vit-quickgelu", "vit-avg", "coca"], indirect=True)
@pytest.mark.parity("openclip, siglip2, coca", "open_clip's", "open_clip, with hooks")
def test_other_views_equal_hooked_reference(case: Any) -> None:
    """Pooled, mean and blocks against what hooks see inside open_clip's own forward pass."""
    name, model, file = case
    encoder = load_encoder(f"openclip/{name}", LoadOptions(weights=file))
    pixels = images(64)
    visual, seen = model.visual, []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in visual.transformer.resblocks
    ]
    projection, visual.proj = visual.proj, None
    with torch.inference_mode():
        pooled = model.encode_image(pixels, normalize=False)
        normed = [x if name == "coca" else visual.ln_post(x) for x in seen]
        blocks = torch.cat([part for x in normed for part in (x[:, 0], x[:, 1:].mean(dim=1))], dim=1)
    visual.proj = projection
    for hook in hooks:
        hook.remove()
    ours = encoder.encode(pixels)
    assert list(ours) == ["projected", "pooled", "mean", "blocks"]
    assert difference(ours["pooled"], pooled) < 1e-4
    assert difference(ours["blocks"], blocks) < 1e-4
    assert difference(ours["mean"], normed[-1][:, 1:].mean(dim=1)) < 1e-4


@pytest.mark.parametrize("name", ["vit", "coca", "timm-linear", "timm-map"])
@pytest.mark.parity("openclip, siglip2, coca", "open_clip's, at another size", "open_clip")
def test_other_size_equals_open_clip(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, CONFIGS[name])
    file = saved(randomised(open_clip.create_model(name)).state_dict(), tmp_path / "open_clip_model.safetensors")
    for size in (96, 128):
        reference = open_clip.create_model(name, pretrained=file, force_image_size=size).eval()
        pixels = images(size)
        with torch.inference_mode():
            expected = reference.encode_image(pixels, normalize=False)
        encoder = load_encoder(f"openclip/{name}", LoadOptions(weights=file, image_size=size))
        assert difference(encoder.encode(pixels)["projected"], expected) < 1e-4
        assert "antialias on" in encoder.architecture


@pytest.mark.parity("openclip, siglip2, coca", "open_clip's, timm tower", "timm")
def test_views_of_a_timm_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "timm-linear", CONFIGS["timm-linear"])
    model = randomised(open_clip.create_model("timm-linear"))
    file = saved(model.state_dict(), tmp_path / "model.pt")
    encoder = load_encoder("openclip/timm-linear", LoadOptions(weights=file))
    pixels = images(160)
    with torch.inference_mode():
        tokens = model.visual.trunk.forward_features(pixels)
    ours = encoder.encode(pixels)
    assert set(ours) == {"projected", "pooled", "mean", "blocks"}
    assert difference(ours["pooled"], tokens[:, 0]) < 1e-4
    assert difference(ours["mean"], tokens[:, 1:].mean(dim=1)) < 1e-4
    assert difference(ours["blocks"][:, -64:], tokens[:, 1:].mean(dim=1)) < 1e-4


def test_no_text_tower(case: Any) -> None:
    name, model, file = case
    encoder = load_encoder(f"openclip/{name}", LoadOptions(weights=file))
    assert encoder.n_parameters == sum(p.numel() for p in model.visual.parameters())


def test_the_tag_decides_the_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's weights were trained with QuickGELU, whatever the model's plain configuration says."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-16", CONFIGS["vit"])
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "vit-quickgelu", CONFIGS["vit-quickgelu"])
    model = randomised(open_clip.create_model("vit-quickgelu"))
    file = saved(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    pixels = images(64)
    with torch.inference_mode():
        expected = model.encode_image(pixels, normalize=False)
    quick = load_encoder("openclip/ViT-B-16@openai", LoadOptions(weights=file))
    plain = load_encoder("openclip/ViT-B-16@laion2b_s34b_b88k", LoadOptions(weights=file))
    assert difference(quick.encode(pixels)["projected"], expected) < 1e-4
    assert difference(plain.encode(pixels)["projected"], expected) > 1e-3
    assert "QuickGELU" in quick.architecture
    assert "QuickGELU" not in plain.architecture


@pytest.mark.parity("openclip/biomedclip", "open_clip_pytorch_model.bin", "open_clip")
def test_biomedclip_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = openclip._BIOMEDCLIP_CONFIG
    tiny = {**config["vision_cfg"], "timm_model_name": "test_vit", "image_size": 160}
    monkeypatch.setitem(config, "vision_cfg", tiny)
    tower = randomised(open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"]))
    state = {f"visual.{key}": value for key, value in tower.state_dict().items()}
    file = saved({**state, "text.transformer.x": torch.zeros(1)}, tmp_path / "open_clip_pytorch_model.bin")
    encoder = load_encoder("openclip/biomedclip", LoadOptions(weights=file))
    pixels = images(160, n=1)
    with torch.inference_mode():
        assert difference(encoder.encode(pixels)["projected"], tower(pixels)) < 1e-4
    assert "PubMed" in encoder.card.training_data


@pytest.mark.parametrize(
    ("mode", "resize", "crop"),
    [("shortest", 224, "center"), ("longest", None, "pad"), ("squash", (224, 224), "none")],
)
def test_preprocessing_is_open_clips(mode: str, resize: Any, crop: str) -> None:
    given = {"resize_mode": mode, "interpolation": "bilinear", "mean": (0.5, 0.5, 0.5), "std": (0.1, 0.2, 0.3)}
    preprocess = openclip.preprocess_of(given, 224, LoadOptions())
    geometry = preprocess.geometry
    assert (geometry.size, geometry.resize, geometry.crop) == ((224, 224), resize, crop)
    assert geometry.interpolation == "bilinear"
    assert (preprocess.mean, preprocess.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


def test_every_tag_has_a_known_resize_mode() -> None:
    for model, tag in open_clip.list_pretrained():
        config = open_clip.pretrained.get_pretrained_cfg(model, tag)
        openclip.preprocess_of(config, 224, LoadOptions())


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model 'ViT-Z'"):
        load_encoder("openclip/ViT-Z@openai")
    with pytest.raises(UsageError, match="laion2b_s34b_b88k"):
        load_encoder("openclip/ViT-B-16@nothing")
    with pytest.raises(UsageError, match="@<tag>"):
        load_encoder("openclip/ViT-B-16")
    file = saved({"visual.conv1.weight": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(DataError, match="keys are missing"):
        load_encoder("openclip/ViT-B-32@openai", LoadOptions(weights=file))
