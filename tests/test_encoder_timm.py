"""``timm/...`` against timm itself, and ``mae/...`` against the position resize and the norm of its own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from encoder_helpers import difference, images, randomised, saved
from torch.nn import functional

from medprobe.encoders import mae
from medprobe.encoders.base import LoadOptions, weights_digest
from medprobe.encoders.registry import load_encoder
from medprobe.encoders.timm import evenly_spaced, preprocess_of, wrap
from medprobe.errors import DataError, UsageError

NAMES = ["test_vit", "test_vit2", "test_resnet", "test_convnext", "test_efficientnet", "test_nfnet"]


def timm_file(name: str, folder: Path, **kwargs: Any) -> tuple[Any, str]:
    """A random timm model with its classifier, and its file."""
    model = randomised(timm.create_model(name, **kwargs))
    return model, saved(model.state_dict(), folder / f"{name}.safetensors")


def timm_at(name: str, file: str, size: int) -> Any:
    """timm's own model with that file, brought to another size by timm's own code."""
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file}, img_size=size).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parity("timm", "timm's", "timm")
def test_default_view_is_what_timms_classifier_sees(name: str, tmp_path: Path) -> None:
    model, file = timm_file(name, tmp_path)
    encoder = load_encoder(f"timm/{name}", LoadOptions(weights=file))
    pixels = images(*encoder.preprocess.geometry.size)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    assert difference(encoder.encode(pixels)[encoder.default_view], expected) < 1e-4


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
@pytest.mark.parity("timm", "timm's", "timm")
def test_views_of_a_vit(name: str, tmp_path: Path) -> None:
    model, file = timm_file(name, tmp_path, depth=8)
    # The name alone gives twelve blocks, so this file must not fit.
    with pytest.raises(DataError, match=r"keys are missing .*blocks\.10"):
        load_encoder(f"timm/{name}", LoadOptions(weights=file))
    model, file = timm_file(name, tmp_path)
    encoder = load_encoder(f"timm/{name}", LoadOptions(weights=file))
    pixels, seen = images(224), []
    hooks = [model.blocks[i].register_forward_hook(lambda _m, _i, out: seen.append(out)) for i in (2, 5, 8, 11)]
    with torch.inference_mode():
        tokens = model.forward_features(pixels)
        normed = [model.norm(x) for x in seen]
    for hook in hooks:
        hook.remove()
    n = model.num_prefix_tokens
    expected = {
        "cls": tokens[:, 0],
        "mean": tokens[:, n:].mean(dim=1),
        "cls+mean": torch.cat([tokens[:, 0], tokens[:, n:].mean(dim=1)], dim=1),
        "blocks": torch.cat([part for x in normed for part in (x[:, 0], x[:, n:].mean(dim=1))], dim=1),
    }
    ours = encoder.encode(pixels)
    assert ours.keys() == expected.keys()
    for view in expected:
        assert difference(ours[view], expected[view]) < 1e-4, view


def test_views_without_a_class_token() -> None:
    """SigLIP's attention pool over patch tokens: its own pooling is the default, and blocks are means alone."""
    config = {"embed_dim": 48, "depth": 4, "num_heads": 4, "num_classes": 0}
    model: Any = randomised(timm.create_model("vit_base_patch16_siglip_224", **config))
    encoder = wrap("timm/siglip", model, LoadOptions())
    pixels = images(224)
    with torch.inference_mode():
        tokens, pooled = model.forward_features(pixels), model(pixels)
    ours = encoder.encode(pixels)
    assert encoder.views == {"mean": 48, "blocks": 192, "pooled": 48}
    assert encoder.default_view == "pooled"
    assert difference(ours["pooled"], pooled) < 1e-4
    assert difference(ours["mean"], tokens.mean(dim=1)) < 1e-4
    assert difference(ours["blocks"][:, -48:], tokens.mean(dim=1)) < 1e-4


def test_windowed_networks_give_what_they_pool() -> None:
    config = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "num_classes": 0}
    model: Any = randomised(timm.create_model("swin_tiny_patch4_window7_224", **config))
    encoder = wrap("timm/swin", model, LoadOptions())
    pixels = images(224)
    with torch.inference_mode():
        expected = model(pixels)
    assert encoder.views == {"mean": 128}
    assert difference(encoder.encode(pixels)["mean"], expected) < 1e-4


@pytest.mark.parity("timm", "timm's, at another size", "timm")
def test_other_size_equals_timm_at_that_size(tmp_path: Path) -> None:
    _, file = timm_file("test_vit", tmp_path)
    for size in (96, 224):
        reference = timm_at("test_vit", file, size)
        encoder = load_encoder("timm/test_vit", LoadOptions(weights=file, image_size=size))
        pixels = images(size)
        with torch.inference_mode():
            expected = reference.forward_features(pixels)
        assert difference(encoder.encode(pixels)["cls"], expected[:, 0]) < 1e-4
        assert encoder.preprocess.geometry.size == (size, size)


def test_convolutional_networks_take_any_size(tmp_path: Path) -> None:
    _, file = timm_file("test_resnet", tmp_path)
    encoder = load_encoder("timm/test_resnet", LoadOptions(weights=file, image_size=96))
    assert list(encoder.encode(images(128, 64))) == ["mean"]


def test_file_from_before_the_batch_counters(tmp_path: Path) -> None:
    model, _ = timm_file("test_resnet", tmp_path)
    old = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    encoder = load_encoder("timm/test_resnet", LoadOptions(weights=saved(old, tmp_path / "old.pth")))
    assert encoder.default_view == "mean"


def test_preprocessing_is_timms_own(tmp_path: Path) -> None:
    config = timm.get_pretrained_cfg("vit_base_patch16_clip_224.openai").to_dict()
    preprocess = preprocess_of(config, LoadOptions())
    reference = timm.data.resolve_data_config(pretrained_cfg=config)
    assert preprocess.mean == reference["mean"]
    assert preprocess.std == reference["std"]
    assert preprocess.geometry.size == reference["input_size"][1:]
    assert preprocess.geometry.interpolation == reference["interpolation"]
    squashed = preprocess_of({**config, "crop_mode": "squash", "crop_pct": 0.5}, LoadOptions(image_size=128)).geometry
    assert (squashed.size, squashed.resize, squashed.crop) == ((128, 128), (256, 256), "center")
    assert preprocess_of({**config, "crop_pct": 0.9}, LoadOptions()).geometry.resize == 248


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model 'resnet5'.*resnet50"):
        load_encoder("timm/resnet5")
    with pytest.raises(UsageError, match=r"deit_small_patch16_224\.fb_in1k"):
        load_encoder("timm/deit_small_patch16_224@nothing")
    with pytest.raises(UsageError, match="publishes no weights"):
        load_encoder("timm/vit_giant_patch14_224")
    _, file = timm_file("test_vit", tmp_path)
    with pytest.raises(DataError, match="does not fit timm/test_resnet"):
        load_encoder("timm/test_resnet", LoadOptions(weights=file))
    with pytest.raises(UsageError, match="--image-size 100"):
        load_encoder("timm/test_vit", LoadOptions(weights=file, image_size=100))


def test_four_evenly_spaced_blocks() -> None:
    assert evenly_spaced(12) == [2, 5, 8, 11]
    assert evenly_spaced(24) == [5, 11, 17, 23]
    assert evenly_spaced(40) == [9, 19, 29, 39]


def mae_positions(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What MAE's own code does before it fine-tunes at another size: bicubic, without antialias."""
    side = round((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parity("mae", "official .pth", "timm")
def test_mae_equals_its_linear_probes_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 4}
    monkeypatch.setitem(mae.MODELS, "vitb16", mae.Model(config, "", ""))
    reference: Any = randomised(timm.models.VisionTransformer(num_classes=0, dynamic_img_size=True, **config))
    state = dict(reference.state_dict())
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    file = saved({"model": {**state, **decoder}}, tmp_path / "mae_pretrain_vit_base.pth")
    encoder = load_encoder("mae/vitb16", LoadOptions(weights=file))
    assert encoder.default_view == "cls"
    for size in [(224, 224), (160, 96)]:
        pixels = images(*size)
        positions = mae_positions(state["pos_embed"], size[0] // 16, size[1] // 16)
        monkeypatch.setattr("timm.models.vision_transformer.resample_abs_pos_embed", lambda *_a, p=positions, **_k: p)
        with torch.inference_mode():
            tokens = reference.forward_features(pixels)  # as in main_linprobe.py: final norm, then token 0
        ours = encoder.encode(pixels)
        assert difference(ours["cls"], tokens[:, 0]) < 1e-4
        assert difference(ours["mean"], tokens[:, 1:].mean(dim=1)) < 1e-4


@pytest.mark.parity("mae", "Hugging Face's", "transformers")
def test_mae_from_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 4}
    monkeypatch.setitem(mae.MODELS, "vitb16", mae.Model(config, "", ""))
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    settings = transformers.ViTMAEConfig(**sizes, image_size=64, layer_norm_eps=1e-6, mask_ratio=0.0)
    model = randomised(transformers.ViTMAEForPreTraining(settings))
    model.save_pretrained(tmp_path)
    encoder = load_encoder("mae/vitb16", LoadOptions(weights=str(tmp_path / "model.safetensors"), image_size=64))
    pixels = images(64)
    with torch.inference_mode():
        tokens = model.vit(pixel_values=pixels).last_hidden_state  # shuffled even where nothing is masked
    ours = encoder.encode(pixels)
    assert difference(ours["cls"], tokens[:, 0]) < 1e-4
    assert difference(ours["mean"], tokens[:, 1:].mean(dim=1)) < 1e-4
    assert len(weights_digest(encoder.module)) == 64
