"""Whose mean and standard deviation pixels are normalised with: the encoder's own, the data set's, or given numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from medprobe.encoders.base import Encoder
from medprobe.errors import DataError, UsageError
from medprobe.images.decode import Decoder, chunks
from medprobe.images.geometry import Geometry
from medprobe.manifest import SPLIT_NAMES, Manifest
from medprobe.storage import Place
from medprobe.store import FeatureStore

log = logging.getLogger("medprobe")

ENCODER, DATASET = "encoder", "dataset"
# Enough for a mean to about a hundredth of a standard deviation between images.
MAX_IMAGES = 2048
# One for all encoders, so that they are compared on the same numbers: the whole image, whatever they crop.
_GEOMETRY = Geometry(size=(256, 256), resize=(256, 256), crop="none", interpolation="bilinear")
_MIN_STD = 1 / 255  # one step of grey: a channel that never changes stays finite

Triple = tuple[float, float, float]
# Mean, standard deviation, and of which images.
Statistics = tuple[Triple, Triple, str]


def parse_normalize(text: str) -> str | tuple[Triple, Triple]:
    """Return ``encoder``, ``dataset``, or mean and standard deviation of red, green, blue from six numbers in 0..1.

    Raises:
        UsageError: The text is none of these.

    """
    if text in {ENCODER, DATASET}:
        return text
    try:
        r, g, b, *spread = (float(part) for part in text.split(","))
        sr, sg, sb = spread
    except ValueError:
        r = g = b = sr = sg = sb = -1.0
    if not (all(0 <= x <= 1 for x in (r, g, b)) and all(0 < x <= 1 for x in (sr, sg, sb))):
        raise UsageError(
            f"--normalize {text}: encoder, dataset, or six numbers mean,mean,mean,std,std,std between 0 and 1"
        )
    return (r, g, b), (sr, sg, sb)


def with_normalization(
    encoder: Encoder, mode: str | tuple[Triple, Triple], store: Place | None, statistics: Callable[[], Statistics]
) -> Encoder:
    """Return the encoder with the mean and standard deviation that are asked for.

    Args:
        encoder: Changed in place.
        mode: What :func:`parse_normalize` returns.
        store: The store that is to be gone on with, whose numbers are kept, or None.
        statistics: Gives the data set's own numbers, as :func:`channel_statistics`; called if they are needed.

    Raises:
        DataError: The data set's own numbers are wanted, and the store was begun with others.

    """
    if mode == ENCODER:
        return encoder
    if isinstance(mode, tuple):
        encoder.preprocess = replace(encoder.preprocess, mean=mode[0], std=mode[1], normalization="given")
        return encoder
    mean, std, source = statistics() if store is None else _kept(store)
    encoder.preprocess = replace(encoder.preprocess, mean=mean, std=std, normalization=source)
    return encoder


def channel_statistics(manifest: Manifest, decoder: Decoder) -> Statistics:
    """Return mean and standard deviation of each colour in 0..1 over all pixels, to four decimals, and of which images.

    Of training images alone where the manifest has a split, of no more than ``MAX_IMAGES``, evenly spaced.

    Raises:
        DataError: None of the images can be read.

    """
    rows, of = np.arange(len(manifest)), "all images"
    if manifest.roles.split is not None:
        words = manifest.samples[manifest.roles.split].astype(str).str.strip().str.lower()
        training = np.flatnonzero(words.map(SPLIT_NAMES).to_numpy() == "train")
        if len(training):
            rows, of = training, "the training images"
    if len(rows) > MAX_IMAGES:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_IMAGES).round().astype(int)]
    n_images, total, squares = 0, np.zeros(3), np.zeros(3)
    images = manifest.images
    parts = ([images.payload(row) for row in part] for part in chunks(images, rows.tolist(), [_GEOMETRY]))
    for decoded in decoder.run(parts, [_GEOMETRY]):
        pixels = decoded.pixels[0].reshape(-1, 3).astype(np.float64) / 255
        n_images += len(decoded.pixels[0])
        total += pixels.sum(axis=0)
        squares += np.square(pixels).sum(axis=0)
    if not n_images:
        raise DataError("--normalize dataset: none of the images can be read; nothing was written")
    n_pixels = n_images * _GEOMETRY.size[0] * _GEOMETRY.size[1]
    mean = total / n_pixels
    std = np.sqrt(np.maximum(squares / n_pixels - mean**2, _MIN_STD**2))
    source = f"data set ({n_images} of {of})"
    log.info("normalised with %s: mean %s, std %s", source, mean.round(3), std.round(3))
    return _triple(mean), _triple(std), source


def _kept(store: Place) -> Statistics:
    """Return the data set's own numbers that a store was begun with.

    Images that have become readable since would change them, and are a reason for neither an error nor a new start.
    """
    stored = FeatureStore(store, partial=True).plan.encoder["preprocess"]
    source = str(stored.get("normalization", ENCODER))
    if not source.startswith("data set"):
        raise DataError(
            f"{store} was begun with another normalization ({source}) than --normalize dataset. "
            "Use another folder (-o), or --overwrite to delete that store and embed everything again."
        )
    return _triple(stored["mean"]), _triple(stored["std"]), source


def _triple(values: Iterable[float]) -> Triple:
    r, g, b = (round(float(value), 4) for value in values)
    return r, g, b
