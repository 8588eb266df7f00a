"""SAM's image encoder against segment_anything and transformers, at its own size and with tables resized by hand."""

from __future__ import annotations

import copy
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_helpers import difference, images, randomised, saved
from PIL import Image
from torch import nn

from medprobe.encoders import sam
from medprobe.encoders.base import Encoder, LoadOptions, fingerprint
from medprobe.encoders.registry import load_encoder
from medprobe.encoders.timm import evenly_spaced
from medprobe.errors import DataError, UsageError
from medprobe.testing import EncoderConformance

segment_anything = pytest.importorskip("segment_anything")

TINY = {"embed_dim": 32, "depth": 8, "num_heads": 2}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sam.SIZES, "vit_b", TINY)


@pytest.fixture(scope="module")
def reference() -> Any:
    """A small random image encoder of SAM's own code, with tables for 1024 pixels."""
    return randomised(
        segment_anything.modeling.ImageEncoderViT(
            **TINY,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(1, 3, 5, 7),
        )
    )


def official_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    others = {
        "prompt_encoder.no_mask_embed.weight": torch.zeros(1, 256),
        "mask_decoder.iou_token.weight": torch.ones(2),
    }
    return {**{f"image_encoder.{key}": value for key, value in encoder.state_dict().items()}, **others}


@pytest.fixture(scope="module")
def official(reference: Any, tmp_path_factory: Any) -> str:
    return saved(official_state(reference), tmp_path_factory.mktemp("sam") / "sam_vit_b.pth")


def resized_line(table: torch.Tensor, length: int) -> nn.Parameter:
    """A table (places, channels) resized linearly, pixel centres at .5, by NumPy."""
    old = np.arange(len(table)) + 0.5
    new = (np.arange(length) + 0.5) * len(table) / length
    return nn.Parameter(
        torch.tensor(np.stack([np.interp(new, old, column) for column in table.T.numpy()], axis=1)).float()
    )


def resized_plane(table: torch.Tensor, height: int, width: int) -> nn.Parameter:
    """A table (1, rows, columns, channels) resized by Pillow, whose bicubic filter is antialiased."""
    planes = table[0].permute(2, 0, 1).numpy()
    resized = [np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    return nn.Parameter(torch.tensor(np.stack(resized)).permute(1, 2, 0)[None])


def at_size(encoder: Any, height: int, width: int) -> Any:
    """A copy of SAM's own encoder for another input size, which it has no code for: every table resized by hand."""
    rows, columns = height // 16, width // 16
    if (rows, columns) == encoder.pos_embed.shape[1:3]:
        return encoder
    encoder = copy.deepcopy(encoder)
    encoder.pos_embed = resized_plane(encoder.pos_embed.data, rows, columns)
    for block in encoder.blocks:
        if block.window_size == 0:
            block.attn.rel_pos_h = resized_line(block.attn.rel_pos_h.data, 2 * rows - 1)
            block.attn.rel_pos_w = resized_line(block.attn.rel_pos_w.data, 2 * columns - 1)
    return encoder


@torch.inference_mode()
def expected_views(encoder: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    encoder = at_size(encoder, *pixels.shape[2:])
    tokens = encoder.patch_embed(pixels) + encoder.pos_embed
    means = []
    for block in encoder.blocks:
        tokens = block(tokens)
        if block.window_size == 0:
            means.append(tokens.mean(dim=(1, 2)))
    neck = encoder.neck(tokens.permute(0, 3, 1, 2)).mean(dim=(2, 3))
    return {"mean": means[-1], "neck": neck, "blocks": torch.cat(means, dim=1)}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("size", [(224, 224), (512, 512), (160, 352), (1024, 1024)])
@pytest.mark.parity("sam", "official .pth", "segment_anything, its tables resized")
def test_every_view_equals_segment_anything(reference: Any, official: str, size: tuple[int, int]) -> None:
    encoder = load_encoder("sam/vit_b", LoadOptions(weights=official))
    pixels = images(*size, n=1 if size[0] == 1024 else 2)
    expected, ours = expected_views(reference, pixels), encoder.encode(pixels)
    assert encoder.views == {"mean": 32, "neck": 256, "blocks": 128}
    assert encoder.default_view == "mean"
    for view in expected:
        assert difference(ours[view], expected[view]) < 1e-4, view


@pytest.mark.usefixtures("tiny")
def test_the_resize_of_either_table_matters(reference: Any, official: str) -> None:
    """What the comparison above would not notice if the tables were too tame."""
    pixels = images(224)
    ours = load_encoder("sam/vit_b", LoadOptions(weights=official)).encode(pixels)["mean"]
    changed = at_size(reference, 224, 224)
    changed.pos_embed = nn.Parameter(
        nn.functional.interpolate(reference.pos_embed.permute(0, 3, 1, 2), (14, 14), mode="bicubic").permute(0, 2, 3, 1)
    )
    assert difference(ours, expected_views(changed, pixels)["mean"]) > 1e-2
    changed = at_size(reference, 224, 224)
    for ours_block, block in zip(changed.blocks, reference.blocks, strict=True):
        if block.window_size == 0:
            nearest = nn.functional.interpolate(block.attn.rel_pos_h.T[None], 27, mode="nearest")[0].T
            ours_block.attn.rel_pos_h = nn.Parameter(nearest)
    assert difference(ours, expected_views(changed, pixels)["mean"]) > 1e-3


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parity("sam", "official .pth, @huix2024", "segment_anything, relative tables to nearest")
def test_huix2024_takes_the_nearest_relative_positions(reference: Any, official: str, size: int) -> None:
    pixels = images(size)
    changed = at_size(copy.deepcopy(reference), size, size)
    for own, block in zip(changed.blocks, reference.blocks, strict=True):
        if own.window_size == 0:
            for name in ("rel_pos_h", "rel_pos_w"):
                table, length = getattr(block.attn, name), 2 * (size // 16) - 1
                nearest = np.arange(length) * len(table) // length
                setattr(own.attn, name, nn.Parameter(table.data[nearest]))
    expected = expected_views(changed, pixels)
    encoder = load_encoder("sam/vit_b@huix2024", LoadOptions(weights=official, image_size=size))
    assert "relative tables nearest" in encoder.architecture
    plain = load_encoder("sam/vit_b", LoadOptions(weights=official, image_size=size))
    assert fingerprint(encoder.provenance(), "fp32") != fingerprint(plain.provenance(), "fp32")
    ours = encoder.encode(pixels)
    for view in expected:
        assert difference(ours[view], expected[view]) < 1e-4, view


@pytest.mark.parity("sam", "official .pth of vit_b, full size", "segment_anything, its tables resized")
def test_the_full_size_file_loads_and_equals_segment_anything(tmp_path: Path) -> None:
    model = randomised(segment_anything.build_sam_vit_b())
    file = tmp_path / "sam_vit_b.pth"
    encoder = load_encoder("sam/vit_b", LoadOptions(weights=saved(model.state_dict(), file)))
    file.unlink()
    assert encoder.views == {"mean": 768, "neck": 256, "blocks": 3072}
    assert encoder.n_parameters == sum(p.numel() for p in model.image_encoder.parameters())
    pixels = images(224, n=1)
    expected, ours = expected_views(model.image_encoder, pixels), encoder.encode(pixels)
    for view in expected:
        assert difference(ours[view], expected[view]) < 1e-4, view


@pytest.mark.parametrize("size", ["vit_b", "vit_l", "vit_h"])
def test_every_size_has_the_official_shapes(size: str) -> None:
    with torch.device("meta"):
        theirs = segment_anything.sam_model_registry[size]().image_encoder
        ours = sam.network(official_state(theirs), size, **sam.SIZES[size])
    assert evenly_spaced(len(ours.blocks)) == [i for i, b in enumerate(theirs.blocks) if b.window_size == 0]
    assert [b.window_size for b in ours.blocks] == [b.window_size for b in theirs.blocks]
    assert [b.attn.num_heads for b in ours.blocks] == [b.attn.num_heads for b in theirs.blocks]
    norms = (nn.LayerNorm, segment_anything.modeling.common.LayerNorm2d)
    epsilons = [{m.eps for m in network.modules() if isinstance(m, norms)} for network in (ours, theirs)]
    assert epsilons == [{1e-6}, {1e-6}]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parity("sam", "Hugging Face's", "transformers")
def test_hugging_faces_file_equals_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "mlp_dim": 128, "num_hidden_layers": 8, "num_attention_heads": 2}
    config = transformers.SamVisionConfig(**sizes, global_attn_indexes=[1, 3, 5, 7])
    reference = randomised(transformers.SamVisionModel(config))
    state = {**reference.state_dict(), "prompt_encoder.shared_embedding.positional_embedding": torch.zeros(2, 128)}
    encoder = load_encoder("sam/vit_b", LoadOptions(weights=saved(state, tmp_path / "model.safetensors")))
    pixels = images(1024, n=1)
    with torch.inference_mode():
        out = reference(pixels, output_hidden_states=True)
    ours = encoder.encode(pixels)
    assert difference(ours["neck"], out.last_hidden_state.mean(dim=(2, 3))) < 1e-4
    assert difference(ours["mean"], out.hidden_states[-1].mean(dim=(1, 2))) < 1e-4


@pytest.mark.usefixtures("tiny")
def test_timms_file_is_the_same(official: str, tmp_path: Path) -> None:
    encoder = load_encoder("sam/vit_b", LoadOptions(weights=official))
    file = saved(encoder.module.state_dict(), tmp_path / "timm.safetensors")
    assert load_encoder("sam/vit_b", LoadOptions(weights=file)).provenance() == encoder.provenance()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("shape", [(300, 300), (200, 300), (451, 300)])
def test_pixels_at_1024_are_sams_own(official: str, shape: tuple[int, int]) -> None:
    """Exactly so for a square image; another one lies in the middle instead of the top left corner."""
    encoder = load_encoder("sam/vit_b", LoadOptions(weights=official, image_size=1024))
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = segment_anything.utils.transforms.ResizeLongestSide(1024).apply_image(picture)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = ((torch.from_numpy(theirs.copy()).float() - mean) / std).permute(2, 0, 1)

    seen = np.asarray(encoder.preprocess.geometry.apply(Image.fromarray(picture)))
    ours = encoder.normalize(torch.from_numpy(seen.copy())[None])[0]
    assert ours.shape == (3, 1024, 1024)
    height, width = theirs.shape[:2]
    top, left = (1024 - height) // 2, (1024 - width) // 2
    assert difference(ours[:, top : top + height, left : left + width], expected) < 1e-5
    assert int((seen > 0).sum()) == int((theirs > 0).sum())


@pytest.mark.usefixtures("tiny")
def test_preprocessing_below_1024(official: str) -> None:
    geometry = load_encoder("sam/vit_b", LoadOptions(weights=official)).preprocess.geometry
    assert (geometry.size, geometry.resize, geometry.crop) == ((224, 224), (256, 256), "center")
    assert geometry.interpolation == "bilinear"
    geometry = load_encoder("sam/vit_b", LoadOptions(weights=official, image_size=448)).preprocess.geometry
    assert (geometry.size, geometry.resize) == ((448, 448), (512, 512))


@pytest.mark.usefixtures("tiny")
def test_half_precision_is_close(official: str) -> None:
    encoder = load_encoder("sam/vit_b", LoadOptions(weights=official))
    pixels = images(224)
    exact = encoder.encode(pixels)
    half = encoder.to(dtype=torch.bfloat16).encode(pixels)
    for view, features in exact.items():
        assert torch.cosine_similarity(half[view], features).min() > 0.99, view


@pytest.mark.usefixtures("tiny")
def test_errors(official: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vit_b, vit_l, vit_h"):
        load_encoder("sam/vit_t")
    with pytest.raises(UsageError, match="multiple of 16"):
        load_encoder("sam/vit_b", LoadOptions(weights=official, image_size=230))
    with pytest.raises(UsageError, match="up to 1024"):
        load_encoder("sam/vit_b", LoadOptions(weights=official, image_size=1040))
    dino = {"blocks.0.ls1.gamma": torch.zeros(2), "pos_embed": torch.zeros(2), "mask_token": torch.zeros(2)}
    with pytest.raises(DataError, match=r"does not fit sam/vit_b: .* DINOv2"):
        load_encoder("sam/vit_b", LoadOptions(weights=saved(dino, tmp_path / "dino.pth")))
    assert set(sam.catalogue()) == {f"sam/{name}" for name in sam.SIZES}


def test_the_official_addresses(monkeypatch: pytest.MonkeyPatch, official: str) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(sam, "fetch", lambda *args: asked.append(args) or official)
    monkeypatch.setattr(sam, "SIZES", dict.fromkeys(sam.SIZES, TINY))
    for name in sam.SIZES:
        load_encoder(f"sam/{name}")
    assert [a[0] for a in asked] == ["sam/vit_b", "sam/vit_l", "sam/vit_h"]
    assert [a[1].rpartition("/")[2] for a in asked] == [a[3] for a in asked]
    assert asked[0][1] == "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"
    assert all(re.fullmatch("[0-9a-f]{64}", a[2]) for a in asked)


class TestConformance(EncoderConformance):
    other_sizes = ((64, 64), (256, 256), (48, 112))
    made: Encoder | None = None

    def encoder(self) -> Encoder:
        if TestConformance.made is None:
            module: Any = randomised(sam.SamViT(**TINY))
            preprocess = sam.Preprocess(sam.geometry(224, False), sam.IMAGENET_MEAN, sam.IMAGENET_STD)
            TestConformance.made = sam.SamEncoder("sam/tiny", module, preprocess, "tiny")
        return TestConformance.made
