"""Decode, batch, encode, write: the loop that fills the blocks of one or more stores from one pass over the images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from medprobe.embed.job import Job
from medprobe.errors import DataError
from medprobe.images.decode import Decoded, Decoder, chunks
from medprobe.images.sources import ImageSource, Payload
from medprobe.manifest import Manifest
from medprobe.store import APPEARANCE_ARRAY, DIGEST_ARRAY, DIGEST_BYTES, STAMP_ARRAY, Failure
from medprobe.store_writer import write_block


@dataclass
class Progress:
    """How far an embedding has come.

    Attributes:
        total: Images that this run has to embed.
        done: Images that are embedded, the failed ones included.
        failures: Images that failed.
        reading: Seconds that the encoders waited for images.
        encoding: Seconds in forward passes.
        writing: Seconds that the encoders waited for the disk.

    """

    total: int
    done: int = 0
    failures: int = 0
    reading: float = 0.0
    encoding: float = 0.0
    writing: float = 0.0


def fill_blocks(
    manifest: Manifest,
    jobs: Sequence[Job],
    to_do: Sequence[Sequence[int]],
    decoder: Decoder,
    allowed_failures: int,
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Make the blocks ``to_do[i]`` of each job's store; blocks are the same rows in stores of one block size.

    Raises:
        DataError: More images fail than are allowed, or the disk refuses. Committed blocks stay.

    """
    spans = sorted({_span(job, index) for job, blocks in zip(jobs, to_do, strict=True) for index in blocks})
    progress = Progress(total=sum(stop - start for start, stop in spans))
    failures = _failures_before(jobs, to_do)
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
        written: list[Future[object]] = []
        for start, stop, wanted in _by_rows(jobs, to_do):
            block = _Block([jobs[i] for i in wanted], start, stop)
            chunks = _fill(block, manifest.images, decoder, progress)
            for _ in chunks:
                failures |= {failure.row: failure.reason for failure in block.read_failures}
                progress.failures = len(failures)
                if len(failures) > allowed_failures:
                    raise DataError(_too_many(failures, allowed_failures, manifest))
                if report is not None:
                    report(progress)
            waited = time.perf_counter()
            while len(written) > 1:
                written.pop(0).result()
            progress.writing += time.perf_counter() - waited
            written.append(writer.submit(block.write))
            failures |= {failure.row: failure.reason for found in block.failures for failure in found}
            progress.failures = len(failures)
            if report is not None:
                report(progress)
        for future in written:
            future.result()
    if spans and len(failures) > allowed_failures:
        raise DataError(_too_many(failures, allowed_failures, manifest))


def _failures_before(jobs: Sequence[Job], to_do: Sequence[Sequence[int]]) -> dict[int, str]:
    """Return row and reason of the failures in blocks that are finished: they count, however many runs it takes."""
    found: dict[int, str] = {}
    for job, blocks in zip(jobs, to_do, strict=True):
        for index in job.store.commits.keys() - set(blocks):
            found |= {failure.row: failure.reason for failure in job.store.commits[index].failures}
    return found


def _span(job: Job, index: int) -> tuple[int, int]:
    rows = job.store.plan.block(index)
    return rows.start, rows.stop


def _by_rows(jobs: Sequence[Job], to_do: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, list[int]]]:
    """Yield first row, last row and the jobs that want them, in the order of the rows."""
    wanted: dict[tuple[int, int], list[int]] = {}
    for i, (job, blocks) in enumerate(zip(jobs, to_do, strict=True)):
        for index in blocks:
            wanted.setdefault(_span(job, index), []).append(i)
    for (start, stop), which in sorted(wanted.items()):
        yield start, stop, which


class _Block:
    """The rows of one block in memory, for every job that wants them."""

    def __init__(self, jobs: Sequence[Job], start: int, stop: int) -> None:
        self.jobs, self.start, self.stop = jobs, start, stop
        n = stop - start
        self.digests = np.zeros((n, DIGEST_BYTES), dtype=np.uint8)
        self.stamps = np.zeros((n, 2), dtype=np.int64)
        self.appearance = [np.zeros((n, 4), dtype=np.float32) for _ in jobs]
        self.read_failures: list[Failure] = []
        self.failures: list[list[Failure]] = [[] for _ in jobs]
        self.features = [
            {
                view: np.full((n, width), np.nan, dtype=job.store.plan.dtypes[view])
                for view, width in job.store.views.items()
            }
            for job in jobs
        ]

    def encode(self, job: int, rows: np.ndarray, images: np.ndarray) -> None:
        """Encode images of these rows (counted from the block's first) and keep what is finite."""
        views = self.jobs[job].encode(images)
        stages = dict.fromkeys(rows.tolist(), "")
        with np.errstate(over="ignore"):
            for view, values in views.items():
                kept = values.astype(self.features[job][view].dtype)
                self.features[job][view][rows] = kept
                for row in rows[~np.isfinite(kept).all(axis=1)].tolist():
                    stages[row] = "store"
                for row in rows[~np.isfinite(values).all(axis=1)].tolist():
                    stages[row] = "encode"
        for row, stage in stages.items():
            if stage:
                reason = {
                    "encode": "features are not finite, in fp32 either",
                    "store": "a value too large for float16 (--dtype float32 --overwrite keeps it)",
                }[stage]
                self.failures[job].append(Failure(self.start + row, stage, reason))
                for values in self.features[job].values():
                    values[row] = np.nan

    def write(self) -> None:
        """Write the block to every job's store."""
        for job, features, looks, failures in zip(
            self.jobs, self.features, self.appearance, self.failures, strict=True
        ):
            arrays = {f"features/{view}": values for view, values in features.items()}
            arrays |= {DIGEST_ARRAY: self.digests, STAMP_ARRAY: self.stamps, APPEARANCE_ARRAY: looks}
            found = sorted([*self.read_failures, *failures], key=lambda failure: failure.row)
            index = self.start // job.store.plan.block_rows
            try:
                write_block(job.store, index, arrays, found, job.made_with)
            except OSError as error:
                size = sum(values.nbytes for values in arrays.values())
                raise DataError(
                    f"{job.store.path}: block {index} ({size / 1e6:.1f} MB) could not be written: {error.strerror or error}. "
                    "Blocks before it are safe; run the same command again when there is room."
                ) from error


def _fill(block: _Block, images: ImageSource, decoder: Decoder, progress: Progress) -> Iterator[None]:
    """Decode and encode the rows of a block, batch by batch; yields after each chunk of images."""
    geometries = list(dict.fromkeys(job.encoder.preprocess.geometry for job in block.jobs))
    waiting = [_Queue(job.batch_size, geometries.index(job.encoder.preprocess.geometry)) for job in block.jobs]
    at = 0

    def payloads() -> Iterator[list[Payload]]:
        for rows in chunks(images, range(block.start, block.stop), geometries):
            yield [images.payload(row) for row in rows]

    stream = decoder.run(payloads(), geometries)
    while True:
        started = time.perf_counter()
        decoded = next(stream, None)
        progress.reading += time.perf_counter() - started
        if decoded is None:
            break
        rows = np.arange(at, at + len(decoded.readable))
        at += len(rows)
        block.digests[rows] = decoded.digests
        block.stamps[rows] = [images.stamp(block.start + int(row)) for row in rows]
        bad = rows[~decoded.readable].tolist()
        block.read_failures += [
            Failure(block.start + r, "read", reason) for r, reason in zip(bad, decoded.reasons, strict=True)
        ]
        started = time.perf_counter()
        for job, queue in enumerate(waiting):
            block.appearance[job][rows] = decoded.appearance[queue.geometry]
            queue.add(rows[decoded.readable], decoded)
            for batch in queue.batches(last=at == block.stop - block.start):
                block.encode(job, *batch)
        progress.encoding += time.perf_counter() - started
        progress.done += len(rows)
        yield


class _Queue:
    """Images of one job that wait for their batch to be full."""

    def __init__(self, batch_size: int, geometry: int) -> None:
        self.batch_size, self.geometry = batch_size, geometry
        self.rows: list[np.ndarray] = []
        self.images: list[np.ndarray] = []

    def add(self, rows: np.ndarray, decoded: Decoded) -> None:
        self.rows.append(rows)
        self.images.append(decoded.pixels[self.geometry])

    def batches(self, last: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield full batches, and with ``last`` what is left."""
        if not last and sum(map(len, self.rows)) < self.batch_size:
            return
        rows, images = np.concatenate(self.rows), np.concatenate(self.images)
        full = len(rows) if last else len(rows) - len(rows) % self.batch_size
        for start in range(0, full, self.batch_size):
            stop = min(start + self.batch_size, full)
            yield rows[start:stop], images[start:stop]
        self.rows, self.images = [rows[full:]], [images[full:]]


def _too_many(failures: dict[int, str], allowed: int, manifest: Manifest) -> str:
    reasons: dict[str, int] = {}
    for reason in failures.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    listed = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])[:4])
    first = manifest.samples["id"].iloc[min(failures)]
    return (
        f"{len(failures)} images failed, more than the {allowed} that --max-failures allows: {listed} (first: {first}). "
        "Something may be wrong with the data as a whole. What was finished is kept; raise --max-failures to go on."
    )
