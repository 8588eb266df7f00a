"""What a feature store writes down about itself: the plan that it follows, and the records of its blocks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first image is read; two stores of one plan hold the same features.

    Attributes:
        encoder: Name, architecture, digest of the weights, views, preprocessing, card.
        fingerprint: SHA-256 of what decides the features' values.
        precision: What the encoder computes in, such as ``bf16``.
        views: Width of each view.
        dtypes: How each view is kept, ``float16`` or ``float32``.
        default_view: The pooling that the encoder was trained with.
        rows: Number of samples.
        block_rows: Rows of a block.
        manifest_sha256: Digest of the sample ids in their order.

    """

    encoder: Mapping[str, Any]
    fingerprint: str
    precision: str
    views: Mapping[str, int]
    dtypes: Mapping[str, str]
    default_view: str
    rows: int
    block_rows: int
    manifest_sha256: str

    @property
    def digest(self) -> str:
        """SHA-256 of the plan; every commit record carries it."""
        return hashlib.sha256(_canonical(asdict(self))).hexdigest()

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.block_rows)

    def block(self, index: int) -> slice:
        """Return the rows of a block."""
        return slice(index * self.block_rows, min((index + 1) * self.block_rows, self.rows))


@dataclass(frozen=True)
class Failure:
    """A sample without features: its row, where it failed (``read``, ``encode`` or ``store``) and why."""

    row: int
    stage: str
    reason: str


@dataclass(frozen=True)
class Commit:
    """The proof that a block is complete: size and SHA-256 of each chunk file, and the rows that have no features."""

    block: int
    plan: str
    chunks: Mapping[str, Mapping[str, Any]]
    failures: tuple[Failure, ...]
    made_with: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Commit | None:
        """Return the record in a file, or None where it is missing, torn or of another shape."""
        try:
            record = json.loads(path.read_bytes())
            failures = tuple(Failure(int(f["row"]), str(f["stage"]), str(f["reason"])) for f in record.pop("failures"))
            return cls(failures=failures, **record)
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
