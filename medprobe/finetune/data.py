"""Images in the geometry of an encoder: read once, kept in memory while they fit, and given out in batches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from medprobe.errors import DataError, UsageError
from medprobe.finetune.augment import Augmentation, augmented
from medprobe.images.decode import CHUNK, Decoder, decode
from medprobe.images.geometry import Geometry
from medprobe.images.sources import ArrayImages
from medprobe.manifest import Manifest
from medprobe.tables import storable

log = logging.getLogger("medprobe")

_LISTED = 5


class ReadImages:
    """The images of a manifest that can be read, and what a question needs to know of them.

    All images are decoded once, which finds those that cannot be used. Pixels stay in memory if they fit; else each image
    is decoded again whenever it is needed.

    Args:
        manifest: The data.
        decoder: Decodes them.
        geometry: Resize and crop.
        memory: Bytes that pixels may take.

    Raises:
        DataError: None of the images can be read.
        UsageError: They do not fit, and lie in an ``.npz`` file, which is read in its order alone.

    """

    def __init__(self, manifest: Manifest, decoder: Decoder, geometry: Geometry, memory: float) -> None:
        self.path = Path(manifest.name or "data")
        self._images, self._geometry = manifest.images, geometry
        n_bytes = len(manifest) * geometry.image_bytes
        self.in_memory = n_bytes <= memory
        if not self.in_memory and isinstance(manifest.images, ArrayImages):
            raise UsageError(
                f"--memory: the images of {manifest.images.path.name} need {n_bytes / 1e9:.1f} GB at {geometry.size}, and an "
                ".npz file can only be read from its beginning: allow as much, or unpack it into files"
            )
        self._pixels = np.empty((len(manifest), *geometry.size, 3), np.uint8) if self.in_memory else None
        readable, digests, reasons, at = [], [], [], 0
        rows = range(len(manifest))
        chunks = ([manifest.images.payload(row) for row in rows[i : i + CHUNK]] for i in range(0, len(rows), CHUNK))
        for decoded in decoder.run(chunks, [geometry]):
            readable.append(decoded.readable)
            digests.append(decoded.digests)
            reasons += decoded.reasons
            if self._pixels is not None:
                self._pixels[at + np.flatnonzero(decoded.readable)] = decoded.pixels[0]
            at += len(decoded.readable)
        kept = np.concatenate(readable)
        if not kept.any():
            raise DataError(f"none of the {len(manifest)} images can be read (the first one: {reasons[0]})")
        self.rows = np.flatnonzero(kept)
        self._digests = np.concatenate(digests)[kept]
        # As a store holds them, so that a question to either is about the same values.
        columns = {str(name): storable(manifest.samples[name]) for name in manifest.samples.columns}
        everything = pd.DataFrame(columns)
        self.samples = everything[kept].reset_index(drop=True)
        self.failures = pd.DataFrame({"id": everything["id"][~kept].to_numpy(), "reason": reasons})
        roles = manifest.roles
        self.roles: Mapping[str, Any] = {
            "labels": list(roles.labels), "group": roles.group, "split": roles.split, "data": manifest.name,
        }  # fmt: skip

    def image_digests(self) -> np.ndarray:
        """Return the digest of each image, uint8 (n, 16)."""
        digests: np.ndarray = self._digests
        return digests

    def pixels(self, row: int) -> np.ndarray:
        """Return an image, uint8 (height, width, 3).

        Raises:
            DataError: It could be read before, and cannot be read now.

        """
        if self._pixels is not None:
            image: np.ndarray = self._pixels[self.rows[row]]
            return image
        decoded = decode([self._images.payload(int(self.rows[row]))], [self._geometry])
        if not decoded.readable[0]:
            raise DataError(f"image {self.samples['id'].iloc[row]} has changed while it was used: {decoded.reasons[0]}")
        found: np.ndarray = decoded.pixels[0][0]
        return found

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What has to be known about the images that cannot be read."""
        if not len(self.failures):
            return ()
        counted = ", ".join(f"{n} {reason}" for reason, n in Counter(self.failures["reason"]).most_common(4))
        names = ", ".join(map(str, self.failures["id"][:_LISTED])) + (", ..." if len(self.failures) > _LISTED else "")
        return (f"{len(self.failures)} images cannot be read and take no part: {counted} ({names})",)


class _Augmented(Dataset[torch.Tensor]):
    """Images by row and epoch; an epoch below 0 is one as it is."""

    def __init__(self, images: ReadImages, change: Augmentation | None, seed: int) -> None:
        self._images, self._change, self._seed = images, change, seed

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        row, epoch = key
        image = torch.from_numpy(np.array(self._images.pixels(row)))
        if self._change is None or epoch < 0:
            return image
        return augmented(image.permute(2, 0, 1), self._change, self._seed, epoch, row).permute(1, 2, 0)


class Batches:
    """Batches of images, augmented in worker processes where there are any.

    Args:
        images: Where they come from.
        change: What training images go through.
        seed: Of that.
        workers: Number of processes; 0 for none.
        pinned: Put batches where a GPU fetches them faster.

    """

    def __init__(
        self, images: ReadImages, change: Augmentation | None, seed: int, workers: int = 0, *, pinned: bool = False
    ) -> None:
        self._data = _Augmented(images, change, seed)
        self._workers, self._pinned = workers, pinned

    def of(self, batches: Sequence[np.ndarray], epoch: int = -1) -> Iterator[torch.Tensor]:
        """Yield the images of each batch of rows, uint8 (B, height, width, 3), augmented if an epoch is given."""
        keys = [[(int(row), epoch) for row in rows] for rows in batches]
        loader: DataLoader[torch.Tensor] = DataLoader(
            self._data,
            batch_sampler=keys,
            num_workers=min(self._workers, len(keys)),
            collate_fn=torch.stack,
            pin_memory=self._pinned,
            generator=torch.Generator(),
        )
        yield from loader


def epoch_batches(rows: np.ndarray, batch_size: int, *, drop_last: bool, seed: int) -> list[np.ndarray]:
    """Return the rows in random order as batches of nearly one size, no larger than ``batch_size``.

    With ``drop_last``, as full batches, and what is left over is left out.
    """
    order = np.random.default_rng(seed).permutation(rows)
    if drop_last and len(order) >= batch_size:
        n = len(order) // batch_size
        return np.split(order[: n * batch_size], n)
    return np.array_split(order, -(-len(order) // batch_size))
