"""Weights that are cast once: the same features bit for bit, and the encoder as it was."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from medprobe.embed.forward import Forward, to_pixels
from medprobe.embed.precision import autocast, with_weights_cast
from medprobe.encoders.base import Encoder
from medprobe.encoders.registry import load_encoder
from medprobe.testing import FakeEncoder

_CPU = torch.device("cpu")


class Layers(FakeEncoder):
    """A convolution, its normalisation and a product."""

    def __init__(self) -> None:
        super().__init__(image_size=16)
        torch.manual_seed(0)
        self.module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 4, 4),
            torch.nn.BatchNorm2d(8),
            torch.nn.Flatten(),
            torch.nn.LayerNorm(128),
            torch.nn.Linear(128, 8),
        )
        self.freeze()

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict.fromkeys(self.views, self.module(pixels))


class Lock(Layers):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class GoesByDtype(Layers):
    """Computes in the dtype of its last weights, whatever autocast says."""

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        found = (self.module[:-1](pixels).float() / 3).to(self.module[-1].weight.dtype)
        return dict.fromkeys(self.views, found[:, : self.views["cls"]])


class Refuses(Layers):
    """Has an operation that autocast leaves alone, and that takes one dtype alone."""

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.module[:-1](pixels).float()
        with torch.autocast("cpu", enabled=False):
            return dict.fromkeys(self.views, self.module[-1](found))


def _encoded(encoder: Encoder, pixels: torch.Tensor, precision: str) -> dict[str, torch.Tensor]:
    with autocast(precision, _CPU):
        return encoder.encode(pixels)


@pytest.mark.parametrize("name", ["layers", "baseline/random-vits16", "baseline/random-resnet18"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_that_are_cast_once_give_the_same_bit_for_bit(name: str, precision: str) -> None:
    encoder = Layers() if name == "layers" else load_encoder(name)
    encoder.module.to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in encoder.module.state_dict().items()}
    pixels = torch.randn(3, 3, *encoder.preprocess.geometry.size, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    other = with_weights_cast(encoder, precision)
    assert other is not encoder
    assert torch.equal(torch.get_rng_state(), state)
    found = _encoded(other, pixels, precision)
    for view, values in _encoded(encoder, pixels, precision).items():
        assert torch.equal(found[view], values), view
    ours, theirs = dict(other.module.named_parameters()), dict(encoder.module.named_parameters())
    layers = {
        key for key, layer in encoder.module.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    for key, parameter in ours.items():
        is_cast = key.rpartition(".")[0] in layers
        assert (parameter.dtype != torch.float32) == is_cast, key
        assert (parameter is theirs[key]) != is_cast, key  # what is not cast is shared
    for key, value in encoder.module.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("encoder", [Lock(), GoesByDtype(), Refuses(), FakeEncoder()], ids=lambda e: type(e).__name__)
def test_an_encoder_that_would_not_give_the_same_stays_as_it_is(encoder: Encoder) -> None:
    assert with_weights_cast(encoder, "bf16") is encoder


def test_an_encoder_stays_as_it_is_where_the_memory_has_no_room_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    encoder = Layers()
    monkeypatch.setattr(torch.nn.Parameter, "to", full, raising=False)
    assert with_weights_cast(encoder, "bf16") is encoder


def test_nothing_is_cast_for_fp32() -> None:
    encoder = Layers()
    assert with_weights_cast(encoder, "fp32") is encoder


def test_rows_that_overflow_are_computed_again_with_the_weights_that_were_not_cast() -> None:
    encoder = Layers()
    encoder.module[0].weight.data = 1000 * (
        1 + 0.1 * torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    )
    images = np.full((3, 16, 16, 3), 128, dtype=np.uint8)
    images[1] = 255  # whose products are too large for fp16, until they are normalised
    assert with_weights_cast(encoder, "fp16") is not encoder
    assert not torch.isfinite(_encoded(encoder, to_pixels(encoder, torch.from_numpy(images)), "fp16")["cls"][1]).any()
    found = Forward(encoder, "fp16").encode(images)
    for view, values in Forward(encoder, "fp32").encode(images[1:2]).items():
        np.testing.assert_array_equal(found[view][1:2], values)


def test_a_pass_does_not_cast_weights_again() -> None:
    encoder = Layers()
    images = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    forward = Forward(encoder, "bf16")
    forward.encode(images)
    with torch.profiler.profile(record_shapes=True) as profile:
        forward.encode(images)
    cast = [event.input_shapes[0] for event in profile.events() if event.name == "aten::to" and event.input_shapes]
    weights = [list(p.shape) for layer in (encoder.module[0], encoder.module[4]) for p in layer.parameters()]
    assert cast
    assert not [shape for shape in cast if shape in weights]
