"""The rows of one block in memory, from the first decoded image to what is written to every store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

import numpy as np

from medprobe.embed.job import Job
from medprobe.errors import DataError
from medprobe.images.decode import Decoded
from medprobe.images.processes import interrupts_blocked
from medprobe.images.sources import ImageSource
from medprobe.store import (
    APPEARANCE_ARRAY,
    DIGEST_ARRAY,
    DIGEST_BYTES,
    STAMP_ARRAY,
    THUMBNAIL_ARRAY,
)
from medprobe.store_records import Failure
from medprobe.store_writer import write_block

_REASONS = {
    "encode": "features are not finite, in fp32 either",
    "store": "a value too large for float16 (--dtype float32 --overwrite keeps it)",
}


@dataclass(frozen=True)
class Span:
    """The rows of a block, without those that stand in a shorter store, and which of the jobs make it."""

    start: int
    stop: int
    wanted: tuple[int, ...]

    def __len__(self) -> int:
        return self.stop - self.start


class Block:
    """The rows of one block in memory, for every job that wants them.

    Args:
        span: Which rows.
        jobs: Those that want them.

    Attributes:
        unread: Rows that are still to be decoded.
        failures: Of each job, rows without features; those that could not be read are in all of them.

    """

    def __init__(self, span: Span, jobs: Sequence[Job]) -> None:
        self.span, self.jobs = span, jobs
        self.unread = len(span)
        self.failures: list[list[Failure]] = [[] for _ in jobs]
        n = len(span)
        self._to_encode = n * len(jobs)
        self._digests = np.zeros((n, DIGEST_BYTES), dtype=np.uint8)
        self._stamps = np.zeros((n, 2), dtype=np.int64)
        self._thumbnails: list[bytes | None] = [None] * n
        self._appearance = [np.zeros((n, 4), dtype=np.float32) for _ in jobs]
        self._features = [
            {
                view: np.full((n, width), np.nan, dtype=job.store.plan.dtypes[view])
                for view, width in job.store.views.items()
            }
            for job in jobs
        ]

    @property
    def complete(self) -> bool:
        """Whether every row is encoded by every job, or cannot be read."""
        return not self._to_encode

    def take(self, decoded: Decoded, images: ImageSource, geometries: Sequence[int]) -> np.ndarray:
        """Keep what is known of the next rows once they are decoded; return the rows to encode, counted from the first.

        Args:
            decoded: The images that follow those that were taken before.
            images: Where they come from.
            geometries: For each job, which of the decoded ones is its own.

        """
        first = len(self.span) - self.unread
        rows = np.arange(first, first + len(decoded.readable))
        self.unread -= len(rows)
        self._digests[rows] = decoded.digests
        self._stamps[rows] = [
            images.stamp(self.span.start + int(row)) if said is None else said
            for row, said in zip(rows, decoded.stamps, strict=True)
        ]
        for looks, geometry in zip(self._appearance, geometries, strict=True):
            looks[rows] = decoded.appearance[geometry]
        for row, reason in zip(rows[~decoded.readable].tolist(), decoded.reasons, strict=True):
            for found in self.failures:
                found.append(Failure(self.span.start + row, "read", reason))
                self._to_encode -= 1
        readable: np.ndarray = rows[decoded.readable]
        if decoded.thumbnails:
            for row, thumbnail in zip(readable.tolist(), decoded.thumbnails, strict=True):
                self._thumbnails[row] = thumbnail
        return readable

    def keep(self, job: int, rows: np.ndarray, views: dict[str, np.ndarray]) -> None:
        """Keep the features of these rows (counted from the block's first) as far as they are finite."""
        self._to_encode -= len(rows)
        stages = dict.fromkeys(rows.tolist(), "")
        with np.errstate(over="ignore"):
            for view, values in views.items():
                kept = values.astype(self._features[job][view].dtype)
                self._features[job][view][rows] = kept
                for row in rows[~np.isfinite(kept).all(axis=1)].tolist():
                    stages[row] = "store"
                for row in rows[~np.isfinite(values).all(axis=1)].tolist():
                    stages[row] = "encode"
        for row, stage in stages.items():
            if stage:
                self.failures[job].append(Failure(self.span.start + row, stage, _REASONS[stage]))
                for values in self._features[job].values():
                    values[row] = np.nan

    def write(self) -> None:
        """Write the block to every job's store.

        Raises:
            DataError: The disk refuses.

        """
        for job, features, looks, failures in zip(
            self.jobs, self._features, self._appearance, self.failures, strict=True
        ):
            arrays = {f"features/{view}": values for view, values in features.items()}
            arrays |= {DIGEST_ARRAY: self._digests, STAMP_ARRAY: self._stamps, APPEARANCE_ARRAY: looks}
            if width := job.store.thumbnail_bytes:
                arrays[THUMBNAIL_ARRAY] = _packed(self._thumbnails, width)
            found = sorted(failures, key=lambda failure: failure.row)
            index = self.span.start // job.store.plan.block_rows
            if self.span.start % job.store.plan.block_rows:
                base, last = job.begun(self.span.start)
                begun = base.block_arrays(last)
                arrays = {name: np.concatenate([begun[name], values]) for name, values in arrays.items()}
                found = [*base.commits[last].failures, *found]
            try:
                write_block(job.store, index, arrays, found, job.made_with)
            except OSError as error:
                size = sum(values.nbytes for values in arrays.values())
                raise DataError(
                    f"{job.store.path}: block {index} ({size / 1e6:.1f} MB) could not be written: {error.strerror or error}. "
                    "Blocks before it are safe; run the same command again when there is room."
                ) from error


def _packed(thumbnails: Sequence[bytes | None], width: int) -> np.ndarray:
    """Return JPEG files as a store keeps them, uint8 (n, width): filled up with zeros, which alone stand for none."""
    files = [(thumbnail or b"").ljust(width, b"\0") for thumbnail in thumbnails]
    return np.frombuffer(b"".join(files), dtype=np.uint8).reshape(len(files), width)


class Writer:
    """Writes one block while the next is decoded, and on a device that works by itself encoded, in a thread of its own.

    No more than one is on its way. It is finished when the process is asked to end, so that this costs the unfinished one
    behind it alone. What passes between the threads goes through ``SimpleQueue``: the lock of a future, taken here at the
    moment of an interrupt, would stay taken, and its thread wait for ever.
    """

    def __init__(self) -> None:
        self._blocks: SimpleQueue[Block | None] = SimpleQueue()
        self._results: SimpleQueue[BaseException | None] = SimpleQueue()
        self._is_writing = False
        self._thread = Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> Writer:
        # A thread that took interrupts would let one in while decoding processes start, which hold them back in theirs.
        with interrupts_blocked():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.put(None)
        self._thread.join()

    def put(self, block: Block) -> None:
        """Have a complete block written once the one before it is.

        Raises:
            DataError: A block before it could not be written.

        """
        self.check(wait=True)
        self._is_writing = True
        self._blocks.put(block)

    def check(self, *, wait: bool = False) -> None:
        """Raise what became of a block that could not be written; with ``wait`` once it is.

        Raises:
            DataError: The disk refused.

        """
        if self._is_writing and (wait or not self._results.empty()):
            error = self._results.get()
            self._is_writing = False
            if error is not None:
                raise error

    def _run(self) -> None:
        while (block := self._blocks.get()) is not None:
            try:
                block.write()
            except BaseException as error:
                self._results.put(error)
            else:
                self._results.put(None)
