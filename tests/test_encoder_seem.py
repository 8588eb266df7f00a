"""SEEM's backbones against outputs of the original code, and against the key lists of its released checkpoints.

``data/seem_*_tiny.npz`` hold a small random network each: ``weight:<key>``, ``input``, and ``output:res2`` to ``res5``
computed with the original code. ``data/seem_checkpoint_keys.json`` lists keys and shapes of the released backbones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_helpers import difference, images, randomised, saved
from torch import nn
from torch.nn import functional

from medprobe.encoders import seem
from medprobe.encoders._focalnet import FocalNet
from medprobe.encoders.base import Encoder, LoadOptions
from medprobe.encoders.registry import load_encoder
from medprobe.errors import DataError, UsageError
from medprobe.testing import EncoderConformance

DATA = Path(__file__).parent / "data"
CHECKPOINTS = json.loads((DATA / "seem_checkpoint_keys.json").read_text())
TINY_SAM = {"embed_dim": 32, "depth": 8, "num_heads": 2}
TINY: dict[str, Callable[[], nn.Module]] = {
    "focal-t": lambda: FocalNet(16, (1, 1, 2, 1), 3, depthwise=True),
    "focal-l": lambda: FocalNet(16, (1, 1, 2, 1), 4, depthwise=False),
    "davit-d3": lambda: seem.DaViT((16, 32, 64, 128), (1, 1, 2, 1), (1, 2, 4, 8)),
    "samvit-b": lambda: seem.SamPyramid((16, 32, 64, 128), **TINY_SAM),
}
VECTORS = {"focal-t": "focal_dw", "focal-l": "focal", "davit-d3": "davit"}


@cache
def vectors(name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
    """Weights in the layout of a released file, input, and output of each stage."""
    with np.load(DATA / f"seem_{VECTORS[name]}_tiny.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    weights = {key.removeprefix("weight:"): value for key, value in arrays.items() if key.startswith("weight:")}
    outputs = {key.removeprefix("output:"): value for key, value in arrays.items() if key.startswith("output:")}
    return weights, arrays["input"], outputs


def checkpoint(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a released file holds: the backbone among the other parts of the model."""
    return {
        **weights,
        "sem_seg_head.predictor.query_feat.weight": torch.zeros(3),
        "criterion.empty_weight": torch.ones(2),
    }


def tiny_encoder(name: str, state: dict[str, torch.Tensor], folder: Path) -> Encoder:
    """The encoder of a small network, loaded from a file by the path that a released file takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(seem.VARIANTS, name, replace(seem.VARIANTS[name], build=TINY[name]))
        return load_encoder(f"seem/{name}", LoadOptions(weights=saved(checkpoint(state), folder / f"{name}.pt")))


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parity("seem", "official .pt: focal-t, focal-l, davit-d3", "vectors of the original code")
def test_every_view_equals_the_original_code(name: str, tmp_path: Path) -> None:
    weights, pixels, outputs = vectors(name)
    encoder = tiny_encoder(name, weights, tmp_path)
    ours = encoder.encode(pixels)
    means = {stage: output.mean(dim=(2, 3)) for stage, output in outputs.items()}
    assert encoder.default_view == "res5"
    assert encoder.views == {"res2": 16, "res3": 32, "res4": 64, "res5": 128, "stages": 240}
    for stage, mean in means.items():
        assert difference(ours[stage], mean) < 1e-4, stage
    assert difference(ours["stages"], torch.cat(list(means.values()), dim=1)) < 1e-4


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parity("seem", "official .pt: focal-t, focal-l, davit-d3", "vectors of the original code")
def test_every_map_equals_the_original_code(name: str, tmp_path: Path) -> None:
    weights, pixels, outputs = vectors(name)
    with torch.inference_mode():
        maps = tiny_encoder(name, weights, tmp_path).module(pixels)
    for ours, (stage, expected) in zip(maps, outputs.items(), strict=True):
        assert difference(ours, expected) < 1e-4, stage


@pytest.mark.parametrize("name", ["focal-t", "focal-l", "davit-d3", "samvit-b"])
def test_full_size_networks_have_the_keys_and_shapes_of_the_released_files(name: str) -> None:
    listed = CHECKPOINTS[f"seem/{name}"]
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in listed.items()}
        module = seem.network(checkpoint(state), seem.VARIANTS[name], name)
        assert len(module.state_dict()) == len(listed)
        assert sum(v.numel() for v in module.state_dict().values()) == sum(v.numel() for v in state.values())
        for key in (list(state)[len(state) // 2], list(state)[-1]):
            with pytest.raises(DataError, match=rf"does not fit {name}: 1 keys are missing .* SEEM"):
                seem.network({k: v for k, v in state.items() if k != key}, seem.VARIANTS[name], name)
        with pytest.raises(DataError, match="1 keys are not part of it"):
            seem.network({**state, "backbone.extra.weight": torch.empty(1)}, seem.VARIANTS[name], name)


def test_full_size_networks_have_the_numbers_of_heads_that_no_shape_tells() -> None:
    with torch.device("meta"):
        davit: Any = seem.VARIANTS["davit-d3"].build()
        sam: Any = seem.VARIANTS["samvit-b"].build()
    assert [stage.blocks[0].spatial_block.attn.num_heads for stage in davit.stages] == [4, 8, 16, 32]
    assert [stage.blocks[0].channel_block.attn.groups for stage in davit.stages] == [4, 8, 16, 32]
    assert [block.attn.num_heads for block in sam.blocks] == [12] * 12
    assert [i for i, block in enumerate(sam.blocks) if block.window_size == 0] == [2, 5, 8, 11]


@pytest.mark.parametrize(("name", "width"), [("focal-t", 768), ("davit-d3", 1024), ("samvit-b", 1024)])
def test_full_size_networks_run(name: str, width: int) -> None:
    module = randomised(seem.VARIANTS[name].build())
    preprocess = seem.Preprocess(seem.Geometry((224, 224), (256, 256)), seem.IMAGENET_MEAN, seem.IMAGENET_STD)
    encoder = seem.SeemEncoder(name, module, preprocess, seem.Card(), name)
    features = encoder.encode(images(224, n=1))
    assert features["res5"].shape == (1, width)
    assert features["stages"].shape == (1, encoder.views["stages"])
    assert torch.isfinite(features["stages"]).all()


def group_norm(x: torch.Tensor, state: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """One mean and one variance an image, over channels and places."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    variance = x.var(dim=(1, 2, 3), keepdim=True, correction=0)
    scale, shift = (state[f"{key}.{kind}"][:, None, None] for kind in ("weight", "bias"))
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def pyramid(x: torch.Tensor, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The pyramid of SEEM's SAM variants, layer by layer, on SAM's last map (B, width, H, W)."""

    def parameters(key: str) -> tuple[torch.Tensor, torch.Tensor]:
        return state[f"backbone.neck.{key}.weight"], state[f"backbone.neck.{key}.bias"]

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        return group_norm(x, state, f"backbone.neck.{key}")

    up = functional.gelu(norm(functional.conv_transpose2d(x, *parameters("down_4.0"), stride=2), "down_4.1"))
    up = norm(functional.conv_transpose2d(up, *parameters("down_4.3"), stride=2), "down_4.4")
    res2 = functional.gelu(norm(functional.conv2d(up, *parameters("down_4.5")), "down_4.6"))
    up = norm(functional.conv_transpose2d(x, *parameters("down_8.0"), stride=2), "down_8.1")
    res3 = functional.gelu(norm(functional.conv2d(up, *parameters("down_8.2")), "down_8.3"))
    res4 = functional.gelu(norm(functional.conv2d(x, *parameters("down_16.0")), "down_16.1"))
    down = norm(functional.conv2d(x, *parameters("down_32.0"), stride=2), "down_32.1")
    res5 = functional.gelu(norm(functional.conv2d(down, *parameters("down_32.2")), "down_32.3"))
    return {"res2": res2, "res3": res3, "res4": res4, "res5": res5}


@pytest.mark.parametrize("side", [224, 1024])
@pytest.mark.parity("seem", "official .pt: samvit-b", "segment_anything, its pyramid written out")
def test_the_sam_variant_equals_segment_anything_with_a_pyramid(side: int, tmp_path: Path) -> None:
    pytest.importorskip("segment_anything")
    from test_encoder_sam import at_size, segment_anything

    trunk: Any = randomised(
        segment_anything.modeling.ImageEncoderViT(
            **TINY_SAM,
            norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(1, 3, 5, 7),
        )
    )
    neck = randomised(TINY["samvit-b"]()).neck
    state = {f"backbone.{key}": v for key, v in trunk.state_dict().items() if not key.startswith("neck.")}
    state |= {f"backbone.neck.{key}": value for key, value in neck.state_dict().items()}
    pixels = images(side, n=1)
    trunk = at_size(trunk, side, side)
    with torch.inference_mode():
        tokens = trunk.patch_embed(pixels) + trunk.pos_embed
        for block in trunk.blocks:
            tokens = block(tokens)
        expected = pyramid(tokens.permute(0, 3, 1, 2), state)
    encoder = tiny_encoder("samvit-b", state, tmp_path)
    ours = encoder.encode(pixels)
    with torch.inference_mode():
        maps = encoder.module(pixels)
    for map_, (stage, output) in zip(maps, expected.items(), strict=True):
        assert difference(map_, output) < 1e-4, stage
        assert difference(ours[stage], output.mean(dim=(2, 3))) < 1e-4, stage


@pytest.mark.parametrize("name", TINY)
def test_any_size_runs_and_is_padded_with_zeros(name: str) -> None:
    module = randomised(TINY[name]())
    preprocess = seem.Preprocess(seem.Geometry((224, 224), (256, 256)), seem.IMAGENET_MEAN, seem.IMAGENET_STD)
    encoder = seem.SeemEncoder(name, module, preprocess, seem.Card(), name)
    pixels = images(75, 130, n=1)
    padded = torch.zeros(1, 3, 96, 160)
    padded[:, :, :75, :130] = pixels
    assert difference(encoder.encode(pixels)["stages"], encoder.encode(padded)["stages"]) == 0
    with torch.inference_mode():
        assert [m.shape[2:] for m in module(padded)] == [(24, 40), (12, 20), (6, 10), (3, 5)]


def test_preprocessing_and_card(tmp_path: Path) -> None:
    encoder = tiny_encoder("focal-t", vectors("focal-t")[0], tmp_path)
    geometry = encoder.preprocess.geometry
    assert (geometry.size, geometry.resize, geometry.crop) == ((224, 224), (256, 256), "center")
    assert geometry.interpolation == "bicubic"
    assert encoder.preprocess.mean == (0.485, 0.456, 0.406)
    assert encoder.card.licence == "Apache-2.0"
    assert "LVIS" in encoder.card.training_data


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="focal-t, focal-l, davit-d3, samvit-b"):
        load_encoder("seem/focal-b")
    with pytest.raises(UsageError, match="pass yours with --weights"):
        load_encoder("seem/davit-d3")
    with pytest.raises(UsageError, match="--image-size 16"):
        load_encoder("seem/focal-t", LoadOptions(weights="none.pt", image_size=16))
    file = saved(checkpoint(vectors("focal-t")[0]), tmp_path / "focal-t.pt")
    with pytest.raises(DataError, match=r"does not fit seem/davit-d3: .* look like those of SEEM"):
        load_encoder("seem/davit-d3", LoadOptions(weights=file))
    sam_file = saved(
        {"image_encoder.patch_embed.proj.weight": torch.zeros(1), "prompt_encoder.x": torch.zeros(1)},
        tmp_path / "s.pth",
    )
    with pytest.raises(DataError, match=r"does not fit seem/focal-t: .* SAM \(family sam\)"):
        load_encoder("seem/focal-t", LoadOptions(weights=sam_file))
    asked: list[Any] = []
    monkeypatch.setattr(seem, "fetch", lambda *args: asked.append(args) or file)
    for name in ("focal-t", "focal-l", "samvit-b"):
        monkeypatch.setitem(
            seem.VARIANTS, name, replace(seem.VARIANTS[name], build=TINY["focal-t"], layout=seem.focalnet_layout)
        )
        load_encoder(f"seem/{name}")
    base = "https://huggingface.co/xdecoder/SEEM/resolve/main/"
    assert [a[1] for a in asked] == [base + f for f in ("seem_focalt_v0.pt", "seem_focall_v0.pt", "seem_samvitb_v1.pt")]
    assert set(seem.catalogue()) == {f"seem/{name}" for name in seem.VARIANTS}


class Conformance(EncoderConformance):
    name = ""
    other_sizes = ((64, 96), (96, 96))

    def encoder(self) -> Encoder:
        return tiny_conformant(self.name)


@cache
def tiny_conformant(name: str) -> Encoder:
    preprocess = seem.Preprocess(seem.Geometry((64, 64), (73, 73)), seem.IMAGENET_MEAN, seem.IMAGENET_STD)
    return seem.SeemEncoder(f"seem/{name}", randomised(TINY[name]()), preprocess, seem.Card(), name)


class TestFocalT(Conformance):
    name = "focal-t"


class TestFocalL(Conformance):
    name = "focal-l"


class TestDaViT(Conformance):
    name = "davit-d3"


class TestSamPyramid(Conformance):
    name = "samvit-b"
