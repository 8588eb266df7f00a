"""BLIP against transformers and against the resize of its own code, from files in both layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_helpers import difference, images, randomised, saved

from medprobe.encoders import blip
from medprobe.encoders.base import LoadOptions, weights_digest
from medprobe.encoders.registry import load_encoder
from medprobe.errors import DataError, UsageError

transformers = pytest.importorskip("transformers")

TINY = {"embed_dim": 48, "depth": 4, "num_heads": 4}


@pytest.fixture(scope="module")
def reference() -> Any:
    """A random BLIP of transformers with the official epsilon."""
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    vision = {"hidden_size": 48, "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6, **sizes}
    text = {"hidden_size": 32, "vocab_size": 120, "bos_token_id": 1, "sep_token_id": 2, **sizes}
    config = transformers.BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=24)
    return randomised(transformers.BlipForImageTextRetrieval(config))


def official_state(model: Any) -> dict[str, torch.Tensor]:
    """The layout of Salesforce's files, written out by hand, with momentum copy and text model beside it."""
    hf, out = model.state_dict(), {}
    for i in range(4):
        theirs, ours = f"vision_model.encoder.layers.{i}.", f"blocks.{i}."
        for mine, other in {
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
            "attn.qkv": "self_attn.qkv",
            "attn.proj": "self_attn.projection",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }.items():
            for kind in ("weight", "bias"):
                out[f"{ours}{mine}.{kind}"] = hf[f"{theirs}{other}.{kind}"]
    embeddings = "vision_model.embeddings."
    out["cls_token"] = hf[embeddings + "class_embedding"]
    out["pos_embed"] = hf[embeddings + "position_embedding"]
    for kind in ("weight", "bias"):
        out[f"patch_embed.proj.{kind}"] = hf[f"{embeddings}patch_embedding.{kind}"]
        out[f"norm.{kind}"] = hf[f"vision_model.post_layernorm.{kind}"]
    momentum = {f"visual_encoder_m.{key}": torch.randn_like(value) for key, value in out.items()}
    return {
        **momentum,
        **{f"visual_encoder.{key}": value for key, value in out.items()},
        **{f"vision_proj.{kind}": hf[f"vision_proj.{kind}"] for kind in ("weight", "bias")},
        "vision_proj_m.weight": torch.randn(24, 48),
        "text_encoder.embeddings.word_embeddings.weight": torch.randn(7, 3),
        "temp": torch.tensor(0.07),
    }


@pytest.fixture(scope="module")
def files(reference: Any, tmp_path_factory: Any) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("blip")
    reference.save_pretrained(folder / "hf")
    wrapped = {"model": official_state(reference), "config": {"image_size": 224}, "epoch": 3}
    return {
        "official": saved(wrapped, folder / "model_base.pth"),
        "huggingface": str(folder / "hf" / "model.safetensors"),
    }


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blip.SIZES, "base", TINY)
    monkeypatch.setitem(blip.SIZES, "large", {**TINY, "embed_dim": 64})


@pytest.mark.parametrize("layout", ["official", "huggingface"])
@pytest.mark.parametrize("size", [(224, 224), (384, 384), (96, 160)])
@pytest.mark.parity("blip", "official .pth, Hugging Face's", "transformers with the official epsilon")
def test_every_view_equals_transformers(
    reference: Any, files: dict[str, str], layout: str, size: tuple[int, int]
) -> None:
    pixels = images(*size)
    vision = reference.vision_model
    normed = []
    with torch.inference_mode():
        # Its own hidden states and norm: the pooled output norms the class token a second time.
        hidden = vision.embeddings(pixels, interpolate_pos_encoding=True)
        for layer in vision.encoder.layers:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            normed.append(vision.post_layernorm(hidden))
        tokens = vision(pixels, interpolate_pos_encoding=True).last_hidden_state
        cls, mean = tokens[:, 0], tokens[:, 1:].mean(dim=1)
        expected = {
            "cls": cls,
            "mean": mean,
            "cls+mean": torch.cat([cls, mean], 1),
            "blocks": torch.cat([part for x in normed for part in (x[:, 0], x[:, 1:].mean(dim=1))], 1),
            "projected": reference.vision_proj(cls),
            "huix2024": tokens[:, 1],
        }
    encoder = load_encoder("blip/base", LoadOptions(weights=files[layout]))
    ours = encoder.encode(pixels)
    assert encoder.default_view == "cls"
    assert ours.keys() == expected.keys()
    for view in expected:
        assert difference(ours[view], expected[view]) < 1e-4, view


def test_both_layouts_are_the_same_numbers(files: dict[str, str]) -> None:
    digests = {weights_digest(load_encoder("blip/base", LoadOptions(weights=f)).module) for f in files.values()}
    assert len(digests) == 1


def test_a_file_without_projection_has_no_such_view(reference: Any, tmp_path: Path) -> None:
    state = {key: v for key, v in official_state(reference).items() if "vision_proj" not in key}
    encoder = load_encoder("blip/base", LoadOptions(weights=saved({"model": state}, tmp_path / "caption.pth")))
    assert "projected" not in encoder.views
    assert "huix2024" in encoder.views


def test_a_table_of_another_size_keeps_it(reference: Any, tmp_path: Path) -> None:
    """The files fine-tuned at 384 carry a table of 24 x 24: at 384 nothing is resized."""
    state = official_state(reference)
    state["visual_encoder.pos_embed"] = torch.randn(1, 24 * 24 + 1, 48)
    encoder = load_encoder(
        "blip/base", LoadOptions(weights=saved({"model": state}, tmp_path / "b.pth"), image_size=384)
    )
    assert encoder.module.pos_embed.shape == (1, 577, 48)
    assert encoder.preprocess.geometry.size == (384, 384)
    assert encoder.preprocess.geometry.resize == (384, 384)


def test_errors(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="base, large"):
        load_encoder("blip/huge")
    with pytest.raises(UsageError, match="multiple of 16"):
        load_encoder("blip/base", LoadOptions(weights=files["official"], image_size=100))
    with pytest.raises(DataError, match="does not fit blip/large"):
        load_encoder("blip/large", LoadOptions(weights=files["official"]))
    with pytest.raises(DataError, match="no position table"):
        load_encoder("blip/base", LoadOptions(weights=saved({"fc.weight": torch.zeros(2)}, tmp_path / "x.pth")))
