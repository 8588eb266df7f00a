"""Small pictures of samples: those that a store keeps, or made from the images where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from medprobe.errors import DataError
from medprobe.probe.bags import AnyRows, Bags

if TYPE_CHECKING:
    from medprobe.images.sources import ImageSource


class Images:
    """Where small pictures come from.

    Args:
        data: What was embedded (folder, table, ``.npz``), if it is at hand.

    """

    def __init__(self, data: str | os.PathLike[str] | None = None) -> None:
        self._data = data

    def thumbnails(self, store: AnyRows, rows: Sequence[int]) -> list[bytes | None]:
        """Return a JPEG of each of these samples, of a volume its middle slice.

        None where the store keeps none and the images are not at hand.
        """
        if isinstance(store, Bags):
            kept, of = store.store, store.middle(rows)
        else:
            kept, of = store, np.flatnonzero(store.mask)[list(rows)]
        found = kept.thumbnails(of)
        if self._data is None:
            return found
        ids = kept.manifest["id"].to_numpy()
        return [jpeg or self._made(str(ids[row])) for jpeg, row in zip(found, of, strict=True)]

    @cached_property
    def _manifest(self) -> tuple[dict[str, int], ImageSource]:
        from medprobe.manifest import read_manifest

        assert self._data is not None
        manifest = read_manifest(self._data)
        return {str(name): row for row, name in enumerate(manifest.samples["id"])}, manifest.images

    def _made(self, name: str) -> bytes | None:
        """Return a picture of the image of that id: only images that the data set itself names are read."""
        from medprobe.images.decode import opened
        from medprobe.images.raster import read_rgb
        from medprobe.images.thumbnail import GEOMETRY, jpeg

        places, images = self._manifest
        if name not in places:
            return None
        try:
            source, part = opened(images.payload(places[name]))
            return jpeg(read_rgb(source, [GEOMETRY], part)[1][0])
        except DataError:
            return None
