"""For tests: an encoder without a download, and what every encoder has to pass."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch.nn import functional

from medprobe.encoders.base import TOKENS, Card, Encoder, Preprocess, fingerprint
from medprobe.images.geometry import Geometry


class FakeEncoder(Encoder):
    """A deterministic encoder: each view is a fixed random projection of the image pooled to 4 x 4 pixels.

    The features of an image do not depend on the batch it comes in, to the last bit.

    Args:
        width: Width of every view.
        views: Names of the views; the first is the default.
        image_size: Side of the square input.
        name: Name of the encoder; it is in no registry, so pass the object itself.
        seed: Seed of the projection.
        nan_rows: Images whose features are NaN, counted from 0 over all images encoded so far.
        oom_above: Raise ``torch.OutOfMemoryError`` for a batch of more images than this.
        delay: Seconds that each call of ``encode`` takes at least.

    Attributes:
        batch_sizes: Number of images of each call that succeeded, in order.

    """

    _side = 4

    def __init__(
        self,
        width: int = 8,
        views: Sequence[str] = ("cls", "mean"),
        image_size: int = 32,
        *,
        name: str = "fake/tiny",
        seed: int = 0,
        nan_rows: Collection[int] = (),
        oom_above: int | None = None,
        delay: float = 0.0,
    ) -> None:
        self.name = name
        self.views = dict.fromkeys(views, width)
        self.default_view = views[0]
        self.architecture = f"projection of {self._side} x {self._side} pixels"
        self.card = Card(licence="Apache-2.0", training_data="none")
        self.preprocess = Preprocess(
            geometry=Geometry(
                size=(image_size, image_size),
                resize=(image_size, image_size),
                crop="none",
                interpolation="bilinear",
            ),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        )
        self.nan_rows = frozenset(nan_rows)
        self.oom_above = oom_above
        self.delay = delay
        self.batch_sizes: list[int] = []
        generator = torch.Generator().manual_seed(seed)
        self._weights = torch.nn.ParameterDict(
            {view: torch.randn(width, 3 * self._side**2, generator=generator) for view in views}
        )
        self.module = self._weights
        self.freeze()

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the projections, with the failures that were asked for."""
        if self.oom_above is not None and len(pixels) > self.oom_above:
            raise torch.OutOfMemoryError(f"a batch of {len(pixels)} images, more than {self.oom_above}")
        time.sleep(self.delay)
        start = sum(self.batch_sizes)
        bad = [i for i in range(len(pixels)) if start + i in self.nan_rows]
        pooled = functional.adaptive_avg_pool2d(pixels, self._side).flatten(1)
        views = {}
        for view, weight in self._weights.items():
            # Not a matrix product: its rounding may change with the number of rows.
            projected = (pooled[:, None, :] * weight).sum(dim=2)
            projected[bad] = torch.nan
            views[view] = projected
        self.batch_sizes.append(len(pixels))
        return views


class EncoderConformance:
    """The tests that every encoder passes. Subclass it in a test module under a name that pytest collects.

    .. code-block:: python

        class TestMine(EncoderConformance):
            def encoder(self):
                return load_encoder("mine/small", LoadOptions(weights=...))

    Attributes:
        other_sizes: Further input sizes (height, width) in pixels that the encoder says it takes.
        tolerance: Largest difference allowed between an image alone and in a batch, as a fraction of the largest
            feature.

    """

    other_sizes: Sequence[tuple[int, int]] = ()
    tolerance: float = 1e-4

    def encoder(self) -> Encoder:
        """Return the encoder under test. One object may serve all tests: they leave it as they found it."""
        raise NotImplementedError

    def test_widths_are_as_declared(self) -> None:
        """Every view that is declared comes back, and no other, as finite float32 of its width."""
        encoder = self.encoder()
        features = encoder.encode(_pixels(encoder, 2))
        assert list(features) == list(encoder.views)
        assert encoder.default_view in encoder.views
        for view, width in encoder.views.items():
            assert features[view].shape == (2, width), view
            assert features[view].dtype == torch.float32, view
            assert bool(torch.isfinite(features[view]).all()), view

    def test_evaluation_mode_and_no_gradients(self) -> None:
        """The network is in evaluation mode, has no trainable parameter, and features carry no graph."""
        encoder = self.encoder()
        assert not any(module.training for module in encoder.module.modules())
        assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
        assert not any(value.requires_grad for value in encoder.encode(_pixels(encoder, 1)).values())

    def test_two_passes_are_equal(self) -> None:
        """The same images give the same features, bit for bit."""
        encoder = self.encoder()
        pixels = _pixels(encoder, 2)
        first, second = encoder.encode(pixels), encoder.encode(pixels)
        for view in encoder.views:
            assert torch.equal(first[view], second[view]), view

    def test_passes_side_by_side_are_equal(self) -> None:
        """Where the encoder says that several threads may use it, they get what one gets, bit for bit."""
        encoder = self.encoder()
        if not encoder.reentrant:
            return
        pixels = [_pixels(encoder, n) for n in (1, 2, 3, 2, 1)]

        def encode(i: int) -> dict[str, torch.Tensor]:
            return encoder.encode(pixels[i])

        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as one:
            expected = list(one.map(encode, range(len(pixels))))
        with ThreadPoolExecutor(len(pixels), initializer=torch.set_num_threads, initargs=(1,)) as several:
            found = list(several.map(encode, range(len(pixels))))
        for one_by_one, at_once in zip(expected, found, strict=True):
            for view in encoder.views:
                assert torch.equal(one_by_one[view], at_once[view]), view

    def test_images_differ(self) -> None:
        """Two different images have different features in every view."""
        encoder = self.encoder()
        features = encoder.encode(_pixels(encoder, 2))
        for view, value in features.items():
            assert not torch.allclose(value[0], value[1]), view

    def test_one_image_equals_the_same_in_a_batch(self) -> None:
        """A batch of 1 equals a batch of 7 within the tolerance."""
        encoder = self.encoder()
        pixels = _pixels(encoder, 7)
        together = encoder.encode(pixels)
        for row in (0, 6):
            alone = encoder.encode(pixels[row : row + 1])
            for view in encoder.views:
                scale = float(together[view].abs().max())
                difference = float((alone[view][0] - together[view][row]).abs().max())
                assert difference <= self.tolerance * scale, view

    def test_gradients_reach_the_network(self) -> None:
        """With gradients switched on, the default view is the same, and depends on the network's parameters."""
        encoder = self.encoder()
        pixels = _pixels(encoder, 2)
        expected = encoder.encode(pixels)[encoder.default_view]
        parameters = list(encoder.module.parameters())
        encoder.module.requires_grad_(True)
        try:
            found = encoder.forward_views(pixels)[encoder.default_view].float()
            torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
            if parameters:
                gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
                assert any(gradient is not None for gradient in gradients)
        finally:
            encoder.freeze()

    def test_patch_tokens(self) -> None:
        """An encoder that has patch tokens gives them one by one, all of one width."""
        encoder = self.encoder()
        pixels = _pixels(encoder, 2)
        with torch.no_grad():
            flat = encoder.forward_views(pixels).get(TOKENS)
            if flat is None:
                return
            tokens = encoder.forward_tokens(pixels)
        assert tokens.ndim == 3
        assert tokens.shape[0] == 2
        assert tokens.shape[1] * tokens.shape[2] == flat.shape[1]

    def test_input_is_left_alone(self) -> None:
        """Encoding does not write into the pixels that it is given."""
        encoder = self.encoder()
        pixels = _pixels(encoder, 1)
        before = pixels.clone()
        encoder.encode(pixels)
        assert torch.equal(pixels, before)

    def test_other_sizes(self) -> None:
        """Input of every size in ``other_sizes`` gives finite features of the same widths."""
        encoder = self.encoder()
        for size in self.other_sizes:
            features = encoder.encode(_pixels(encoder, 1, size))
            for view, width in encoder.views.items():
                assert features[view].shape == (1, width), (size, view)
                assert bool(torch.isfinite(features[view]).all()), (size, view)

    def test_normalize(self) -> None:
        """8-bit images become ``(pixels / 255 - mean) / std``, channels first."""
        encoder = self.encoder()
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, 5, 3, 3), dtype=torch.uint8, generator=generator)
        mean, std = torch.tensor(encoder.preprocess.mean), torch.tensor(encoder.preprocess.std)
        expected = ((images.double() / 255 - mean) / std).permute(0, 3, 1, 2).float()
        torch.testing.assert_close(encoder.normalize(images), expected, rtol=1e-4, atol=1e-5)

    def test_fingerprint_stays(self) -> None:
        """Neither a second look nor encoding changes the fingerprint."""
        encoder = self.encoder()
        before = fingerprint(encoder.provenance(), "fp32")
        assert fingerprint(encoder.provenance(), "fp32") == before
        encoder.encode(_pixels(encoder, 1))
        assert fingerprint(encoder.provenance(), "fp32") == before

    def test_fingerprint_changes_with_precision_and_size(self) -> None:
        """Another precision or another input size is another fingerprint."""
        encoder = self.encoder()
        before = fingerprint(encoder.provenance(), "fp32")
        assert fingerprint(encoder.provenance(), "bf16") != before
        preprocess = encoder.preprocess
        height, width = preprocess.geometry.size
        geometry = replace(preprocess.geometry, size=(height + 32, width + 32))
        encoder.preprocess = replace(preprocess, geometry=geometry)
        try:
            assert fingerprint(encoder.provenance(), "fp32") != before
        finally:
            encoder.preprocess = preprocess
        assert fingerprint(encoder.provenance(), "fp32") == before

    def test_fingerprint_changes_with_weights(self) -> None:
        """Every parameter counts: a change of one number in the first or the last is another fingerprint."""
        encoder = self.encoder()
        before = fingerprint(encoder.provenance(), "fp32")
        parameters = list(encoder.module.parameters())
        for parameter in {id(p): p for p in (*parameters[:1], *parameters[-1:])}.values():
            number = parameter.data.reshape(-1)[0].clone()
            parameter.data.reshape(-1)[0] += 1
            try:
                assert fingerprint(encoder.provenance(), "fp32") != before
            finally:
                parameter.data.reshape(-1)[0] = number
        assert fingerprint(encoder.provenance(), "fp32") == before


def _pixels(encoder: Encoder, n: int, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Return ``n`` different normalised images, the same on every call."""
    height, width = size or encoder.preprocess.geometry.size
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(7))
