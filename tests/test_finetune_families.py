"""Each family under the study's DeiT head, and back from fine-tuned weights to an encoder, by the files' own way."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from encoder_helpers import images, randomised, saved
from safetensors.torch import save_file
from torch import nn

from medprobe.encoders import blip, dinov2, imagenet, sam, seem
from medprobe.encoders._focalnet import FocalNet
from medprobe.encoders.base import Encoder, LoadOptions
from medprobe.encoders.registry import load_encoder
from medprobe.encoders.vit import PlainViT, PositionResize
from medprobe.finetune.heads import DeitHead, Mode, Network
from medprobe.finetune.lora import adapted_layers, merge_adapters

TINY = {"embed_dim": 48, "depth": 4, "num_heads": 4}
CLIP = {"image_size": 64, "layers": 4, "width": 48, "head_width": 12, "patch_size": 16}
# Name, size in pixels, and patch tokens at that size.
FAMILIES = {
    "sam": ("sam/vit_b", 64, 16),
    "sam-huix2024": ("sam/vit_b@huix2024", 64, 16),
    "seem": ("seem/focal-t", 64, 4),
    "dinov2": ("dinov2/vitb14", 56, 16),
    "dinov2-reg": ("dinov2/vitb14-reg", 56, 16),
    "openclip": ("openclip/tiny", 64, 16),
    "blip": ("blip/base", 64, 16),
    "timm": ("timm/test_vit", 160, 100),
    "hf": ("", 56, 16),
    "davit": ("seem/davit-d3", 64, 4),
    "resnet": ("timm/test_resnet", 160, None),
}  # fmt: skip
STUDY = ["sam", "seem", "dinov2", "openclip", "blip"]


@cache
def state_of(family: str) -> dict[str, torch.Tensor]:
    """The weights of a small random network, as a released file has them."""
    if family.startswith("sam"):
        return {f"image_encoder.{k}": v for k, v in randomised(sam.SamViT(**TINY)).state_dict().items()}
    if family == "seem":
        net: nn.Module = FocalNet(12, (1, 1, 2, 1), 3, depthwise=True)
        return {f"backbone.{k}": v for k, v in randomised(net).state_dict().items()}
    if family == "davit":
        return dict(randomised(seem.DaViT((16, 32, 64, 128), (1, 1, 2, 1), (1, 2, 4, 8))).state_dict())
    if family.startswith("dinov2"):
        extra = {"reg_tokens": 4, "no_embed_class": True} if family.endswith("reg") else {}
        vit = PlainViT(PositionResize(), img_size=70, patch_size=14, init_values=1.0, **TINY, **extra)
        return dict(randomised(vit).state_dict())
    if family == "blip":
        state = randomised(blip.BlipViT(24, img_size=64, **TINY)).state_dict()
        return {k if k.startswith("vision_proj") else f"visual_encoder.{k}": v for k, v in state.items()}
    if family == "openclip":
        from open_clip.model import _build_vision_tower

        return {f"visual.{k}": v for k, v in randomised(_build_vision_tower(24, CLIP, False)).state_dict().items()}
    return dict(randomised(timm.create_model(FAMILIES[family][0].removeprefix("timm/"), num_classes=0)).state_dict())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function from a family and a file of weights (its own unless given) to the small encoder."""
    monkeypatch.setitem(sam.SIZES, "vit_b", TINY)
    monkeypatch.setitem(blip.SIZES, "base", TINY)
    monkeypatch.setitem(dinov2.SIZES, "vitb14", TINY)
    for name, build in (
        ("focal-t", lambda: FocalNet(12, (1, 1, 2, 1), 3, depthwise=True)),
        ("davit-d3", lambda: seem.DaViT((16, 32, 64, 128), (1, 1, 2, 1), (1, 2, 4, 8))),
    ):
        monkeypatch.setitem(seem.VARIANTS, name, replace(seem.VARIANTS[name], build=build))

    def make(family: str, weights: str | None = None) -> Encoder:
        name, size, _ = FAMILIES[family]
        if family == "openclip":
            open_clip = pytest.importorskip("open_clip")
            monkeypatch.setitem(
                open_clip.factory._MODEL_CONFIGS, "tiny", {"embed_dim": 24, "vision_cfg": CLIP, "text_cfg": {}}
            )
        if family == "hf":
            folder = tmp_path / "hf"
            if not folder.is_dir():
                transformers = pytest.importorskip("transformers")
                sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 56}
                model = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**sizes, patch_size=14)))
                model.save_pretrained(folder)
                processor = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "resample": 3}
                kind = {"image_processor_type": "BitImageProcessor", "do_resize": True, "do_center_crop": True}
                means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True, "do_rescale": True}
                (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **kind, **means}))
            return load_encoder(f"hf/{folder}", LoadOptions(weights=weights))
        file = weights or saved(state_of(family), tmp_path / f"{family}.safetensors")
        # A network of timm is built for its own size, and ResNets have none.
        return load_encoder(name, LoadOptions(weights=file, image_size=None if family == "timm" else size))

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuned_weights_load_as_the_released_ones_do(family: str, small: Any, tmp_path: Path) -> None:
    encoder = small(family)
    with torch.no_grad():
        for i, parameter in enumerate(encoder.module.parameters()):
            parameter.mul_(1 + 0.01 * (i % 5))
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "finetuned.safetensors"
    save_file({name: value.contiguous().clone() for name, value in encoder.released_state().items()}, file)
    again = small(family, str(file))
    pixels = images(*encoder.preprocess.geometry.size)
    ours, theirs, before = encoder.encode(pixels), again.encode(pixels), small(family).encode(pixels)
    for view in encoder.views:
        assert torch.equal(ours[view], theirs[view]), view
    assert not torch.equal(ours[encoder.default_view], before[encoder.default_view])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_blocks_and_takes_adapters(family: str, small: Any) -> None:
    encoder = small(family)
    n = len(encoder.blocks())
    assert n == (6 if family == "timm" else 4)
    depth = Network(encoder, 2, Mode("partial", unfreeze_from=2)).depth
    assert set(depth.values()) >= set(range(n + 1))
    first, last = next(encoder.blocks()[0].parameters()), next(encoder.blocks()[-1].parameters())
    assert not first.requires_grad
    assert last.requires_grad
    encoder = small(family)
    if family == "resnet" and not adapted_layers(encoder):
        return
    names = set(encoder.module.state_dict())
    network = Network(encoder, 2, Mode("lora", lora_rank=2))
    assert all("lora_" in name or name.startswith("head.") for name in network.trained)
    assert len(network.trained) > 4
    merge_adapters(encoder)
    assert set(encoder.module.state_dict()) == names


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("family", STUDY)
def test_deit_head_is_the_study_s(
    family: str, frozen: bool, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens without class token -> Linear + LayerNorm -> blocks with a position table for as many tokens -> linear."""
    model = replace(imagenet.MODELS["deit-b"], architecture="test_vit", tag="r160_in1k")
    monkeypatch.setitem(imagenet.MODELS, "deit-b", model)
    deit = randomised(timm.create_model("test_vit", num_classes=0))
    weights = saved(deit.state_dict(), tmp_path / "deit.safetensors")
    encoder = small(family)
    _, size, n_tokens = FAMILIES[family]
    network = Network(encoder, 3, Mode("deit-head", frozen=frozen, head_weights=weights))
    pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    tokens = network.features(pixels)
    width = {"seem": 96}.get(family, 48)
    assert tokens.shape == (2, n_tokens, width)
    head: Any = network.head
    assert [type(layer) for layer in head.project] == [nn.Linear, nn.LayerNorm]
    assert head.project[0].weight.shape == (64, width)
    assert head.classifier.weight.shape == (3, 64)
    assert network(pixels).shape == (2, 3)
    expected = {f"head.{name}" for name, _ in network.head.named_parameters()}
    assert not any("patch_embed" in name for name in expected)
    trained = set(network.trained)
    assert expected <= trained
    assert (trained == expected) is frozen
    if not frozen:
        assert any(name.startswith("body.") for name in trained)
        # What comes after the tokens has no part: SAM's neck, and the final norms of DINOv2 and OpenCLIP.
        after = {"sam": "neck", "dinov2": "norm.", "openclip": "ln_post"}.get(family)
        assert after is None or not any(name.startswith(f"body.{after}") for name in trained)


def test_deit_head_equals_the_deit_on_its_own_patches() -> None:
    """With the DeiT's own patch embeddings in place of projected tokens, it is that DeiT."""
    deit: Any = randomised(timm.create_model("test_vit", num_classes=0))
    pixels = images(160)
    with torch.no_grad():
        expected = deit(pixels)
        patches = deit.patch_embed(pixels)
        patches = patches.flatten(1, 2) if patches.ndim == 4 else patches
        head = DeitHead(64, 64, deit)
        head.project, head.classifier = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        torch.testing.assert_close(head(patches), expected)


def test_full_size_deit_head_has_the_study_s_shapes() -> None:
    with torch.device("meta"):
        for width, n_tokens in ((768, 196), (768, 256), (768, 49)):
            head = DeitHead(width, 5, timm.create_model("deit_base_patch16_224", num_classes=0))
            assert head(torch.empty(2, n_tokens, width)).shape == (2, 5)
            assert len(head.deit.blocks) == 12
        deit = sum(p.numel() for p in timm.create_model("deit_base_patch16_224", num_classes=0).parameters())
        own = (768 * 768 + 768) + 2 * 768 + (768 * 5 + 5) - (768 * 3 * 16 * 16 + 768)
        assert sum(p.numel() for p in head.parameters()) == deit + own


def test_tokens_of_dinov2_and_openclip_are_before_the_final_norm(small: Any) -> None:
    for family in ("dinov2", "dinov2-reg", "openclip"):
        encoder = small(family)
        pixels = images(*encoder.preprocess.geometry.size)
        with torch.no_grad():
            tokens = encoder.forward_tokens(pixels)
            normed = encoder.forward_views(pixels)["tokens"].reshape(tokens.shape)
            norm: Any = encoder.module.norm if family != "openclip" else encoder.module.ln_post
            torch.testing.assert_close(norm(tokens), normed)
            assert not torch.allclose(tokens, normed, atol=0.1)
