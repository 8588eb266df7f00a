"""Columns and images of samples as codes, each worked out once however many questions are asked."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np
import pandas as pd

from medprobe.probe.conditions import Conditions
from medprobe.probe.leaks import image_codes
from medprobe.probe.splits import texts


class Samples(Protocol):
    """What knows samples and their images."""

    @property
    def samples(self) -> pd.DataFrame:
        """The samples that can take part."""

    def image_digests(self) -> np.ndarray:
        """Return the digest of each sample's image, uint8 (n, 16)."""


class Columns:
    """What is asked again and again of the same samples.

    Args:
        store: What knows them; they must not change.

    """

    def __init__(self, store: Samples) -> None:
        self._store = store
        self._texts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._groups: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The samples."""
        return self._store.samples

    def texts(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return :func:`~medprobe.probe.splits.texts` of a column."""
        if name not in self._texts:
            self._texts[name] = texts(self.samples[name])
        return self._texts[name]

    def groups(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a code (n,) for the group of each sample, in the order of their names, and these.

        A sample without a group is one by itself.
        """
        if name not in self._groups:
            codes, words = self.texts(name)
            codes = codes.copy()
            alone = np.flatnonzero(words[codes] == "")
            codes[alone] = len(words) + np.arange(len(alone))
            words = np.concatenate([words, [f"(no group, row {row})" for row in alone]])
            names, order = np.unique(words.astype(str), return_inverse=True)
            self._groups[name] = order[codes], names
        return self._groups[name]

    @cached_property
    def images(self) -> np.ndarray:
        """A code (n,) for each sample's image, equal for equal images."""
        return image_codes(self._store.image_digests())

    @cached_property
    def doubled(self) -> bool:
        """Whether an image is there more than once."""
        return len(np.unique(self.images)) < len(self.images)

    @cached_property
    def ids(self) -> np.ndarray:
        """The name of each sample, (n,)."""
        ids: np.ndarray = self.samples["id"].to_numpy(dtype=object)
        return ids

    @cached_property
    def conditions(self) -> Conditions:
        """Conditions on the samples."""
        return Conditions(self.samples)
