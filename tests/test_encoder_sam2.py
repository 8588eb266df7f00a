"""SAM 2's image encoder against transformers, from a checkpoint in the official layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_helpers import difference, images, randomised, saved

from medprobe.encoders import sam2
from medprobe.encoders.base import LoadOptions
from medprobe.encoders.registry import load_encoder
from medprobe.errors import DataError, UsageError

transformers = pytest.importorskip("transformers")

TO_OFFICIAL = (
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"mlp\.proj_in", "mlp.layers.0"),
    (r"mlp\.proj_out", "mlp.layers.1"),
)


@pytest.fixture(scope="module")
def reference() -> Any:
    config = transformers.models.sam2.Sam2HieraDetConfig()  # that of the tiny model
    return randomised(transformers.models.sam2.modeling_sam2.Sam2HieraDetModel(config))


@pytest.fixture(scope="module")
def official(reference: Any, tmp_path_factory: Any) -> str:
    state = {}
    for key, value in reference.state_dict().items():
        for pattern, replacement in TO_OFFICIAL:
            key = re.sub(pattern, replacement, key)
        state[f"image_encoder.trunk.{key}"] = value
    others = {"image_encoder.neck.convs.0.conv.weight": torch.zeros(2), "sam_mask_decoder.x": torch.zeros(1)}
    return saved({"model": {**state, **others}}, tmp_path_factory.mktemp("sam2") / "sam2.1_hiera_tiny.pt")


@pytest.mark.parametrize("size", [(224, 224), (320, 320), (256, 384)])
@pytest.mark.parity("sam2", "official .pt", "transformers")
def test_every_stage_equals_transformers(reference: Any, official: str, size: tuple[int, int]) -> None:
    encoder = load_encoder("sam2/tiny", LoadOptions(weights=official, image_size=224))
    pixels = images(*size)
    with torch.inference_mode():
        stages = reference(pixels).intermediate_hidden_states
    means = [stage.mean(dim=(1, 2)) for stage in stages]
    ours = encoder.encode(pixels)
    assert encoder.views == {"mean": 768, "stages": 1440}
    assert difference(ours["mean"], means[-1]) < 1e-4
    assert difference(ours["stages"], torch.cat(means, dim=1)) < 1e-4


def test_timms_file_is_the_same(official: str, tmp_path: Path) -> None:
    encoder = load_encoder("sam2/tiny", LoadOptions(weights=official, image_size=224))
    state = {**encoder.module.state_dict(), "head.norm.weight": torch.ones(768)}
    again = load_encoder("sam2/tiny", LoadOptions(weights=saved(state, tmp_path / "t.safetensors"), image_size=224))
    assert again.provenance() == encoder.provenance()


def test_preprocessing_and_errors(official: str) -> None:
    geometry = load_encoder("sam2/tiny", LoadOptions(weights=official)).preprocess.geometry
    assert (geometry.size, geometry.resize, geometry.crop) == ((1024, 1024), (1024, 1024), "none")
    with pytest.raises(UsageError, match="multiple of 32"):
        load_encoder("sam2/tiny", LoadOptions(weights=official, image_size=240))
    with pytest.raises(UsageError, match="tiny, small"):
        load_encoder("sam2/giant")
    with pytest.raises(DataError, match="does not fit sam2/small"):
        load_encoder("sam2/small", LoadOptions(weights=official))
    assert set(sam2.catalogue()) == {f"sam2/{name}" for name in sam2.MODELS}
