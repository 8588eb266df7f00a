"""Decode, batch, encode, write: the loop that fills the blocks of one or more stores from one pass over the images.

Images are decoded in processes, ahead and without a break between blocks; forward passes are launched ahead of their results,
on a device that works by itself or on the cores of a processor; finished blocks are written in a thread. Batches end where
their block ends, so that a block that is made again is made of the same batches.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from medprobe.embed.block import Block, Span, Writer
from medprobe.embed.cores import Cores
from medprobe.embed.forward import Batch, cores_for
from medprobe.embed.job import Job
from medprobe.errors import DataError
from medprobe.images.decode import Decoder, Task, chunks
from medprobe.images.geometry import Geometry
from medprobe.manifest import Manifest


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

    def add(self, other: Progress, workers: int) -> None:
        """Add what one of several workers has done meanwhile."""
        self.done += other.done
        self.reading += other.reading / workers
        self.encoding += other.encoding / workers
        self.writing += other.writing / workers

    @contextmanager
    def spent(self, on: str) -> Iterator[None]:
        """Add the time until the end of the context to ``reading``, ``encoding`` or ``writing``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, on, getattr(self, on) + time.perf_counter() - started)


Failures = dict[int, str]  # row and reason


def fill_spans(
    manifest: Manifest,
    jobs: Sequence[Job],
    spans: Sequence[Span],
    decoder: Decoder,
    failures: Failures,
    allowed_failures: int,
    progress: Progress,
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Make blocks of one or more stores.

    Args:
        manifest: The images.
        jobs: Encoders and their stores.
        spans: The blocks, in the order of their rows.
        decoder: Reads the images.
        failures: Of the blocks that are finished; more are added.
        allowed_failures: Above how many to stop.
        progress: Is kept up to date.
        report: Called whenever it is.

    Raises:
        DataError: More images fail than are allowed, or the disk refuses. Committed blocks stay.

    """
    with Writer() as writer, cores_for(job.forward for job in jobs) as cores:
        for block in _encoded(manifest, jobs, spans, decoder, cores, progress, partial(writer.check, wait=True)):
            failures |= {failure.row: failure.reason for found in block.failures for failure in found}
            progress.failures = len(failures)
            check_failures(failures, allowed_failures, manifest)
            with progress.spent("writing"):
                writer.check()
                if block.complete:
                    writer.put(block)
            if report is not None:
                report(progress)
        with progress.spent("writing"):
            writer.check(wait=True)


def failures_before(jobs: Sequence[Job], to_do: Sequence[Mapping[int, slice]]) -> Failures:
    """Return row and reason of the failures in blocks that are finished: they count, however many runs it takes."""
    found: Failures = {}
    for job, blocks in zip(jobs, to_do, strict=True):
        commits = [job.store.commits[index] for index in job.store.commits.keys() - set(blocks)]
        for rows in blocks.values():
            if rows.start % job.store.plan.block_rows:
                base, last = job.begun(rows.start)
                commits.append(base.commits[last])
        found |= {failure.row: failure.reason for commit in commits for failure in commit.failures}
    return found


def spans_of(to_do: Sequence[Mapping[int, slice]]) -> list[Span]:
    """Return what is to be embedded of each block, in the order of the rows, each once for all the jobs that want it."""
    wanted: dict[tuple[int, int], list[int]] = {}
    for i, blocks in enumerate(to_do):
        for rows in blocks.values():
            wanted.setdefault((rows.start, rows.stop), []).append(i)
    return [Span(start, stop, tuple(which)) for (start, stop), which in sorted(wanted.items())]


def _encoded(
    manifest: Manifest,
    jobs: Sequence[Job],
    spans: Sequence[Span],
    decoder: Decoder,
    cores: Cores | None,
    progress: Progress,
    written: Callable[[], None],
) -> Iterator[Block]:
    """Yield a block each time that rows of it were decoded or encoded; it is complete the last time, and only then.

    On a processor no row is encoded before the block ahead of it is ``written``, so that a process that is killed costs one
    block and no more: a fraction of a second a block, in which the images go on being decoded. A device that works by itself
    is not kept waiting; there the block ahead may be lost as well.
    """
    waits = not any(job.forward.ahead for job in jobs)
    asked: deque[Span] = deque()  # of each chunk that is being decoded

    def tasks() -> Iterator[Task]:
        for span in spans:
            geometries = _geometries(jobs, span)
            thumbnails = any(jobs[i].store.thumbnail_bytes for i in span.wanted)
            for chunk in chunks(manifest.images, range(span.start, span.stop), geometries):
                asked.append(span)
                yield Task([manifest.images.payload(row) for row in chunk], geometries, thumbnails)

    stream = decoder.stream(tasks())
    launched: deque[_Launched] = deque()

    def finished(down_to: int) -> Iterator[Block]:
        while len(launched) > down_to:
            with progress.spent("encoding"):
                block = launched.popleft().finish()
            yield block

    block: Block | None = None
    queues: list[_Queue] = []
    while True:
        with progress.spent("reading"):
            decoded = next(stream, None)
        if decoded is None:
            break
        span = asked.popleft()
        if block is None or block.span != span:
            if waits:
                yield from finished(0)
                with progress.spent("writing"):
                    written()
            block = Block(span, [jobs[i] for i in span.wanted])
            geometries = _geometries(jobs, span)
            queues = [_Queue(job, geometries.index(job.encoder.preprocess.geometry)) for job in block.jobs]
        rows = block.take(decoded, manifest.images, [queue.geometry for queue in queues])
        progress.done += len(decoded.readable)
        yield block
        for i, queue in enumerate(queues):
            for batch_rows, images in queue.add(rows, decoded.pixels[queue.geometry], block.unread):
                with progress.spent("encoding"):
                    launched.append(_Launched(block, i, batch_rows, queue.job.forward.launch(images, cores)))
                yield from finished(cores.ahead if cores else queue.job.forward.ahead)
    yield from finished(0)


def _geometries(jobs: Sequence[Job], span: Span) -> list[Geometry]:
    return list(dict.fromkeys(jobs[i].encoder.preprocess.geometry for i in span.wanted))


@dataclass
class _Launched:
    """A batch under way: whose rows it is of, counted from its block's first."""

    block: Block
    job: int
    rows: np.ndarray
    parts: list[Batch]

    def finish(self) -> Block:
        """Wait for the features and keep them."""
        self.block.keep(self.job, self.rows, self.block.jobs[self.job].forward.finish(self.parts))
        return self.block


class _Queue:
    """Images of one job that wait for their batch to be full."""

    def __init__(self, job: Job, geometry: int) -> None:
        self.job, self.geometry = job, geometry
        self._images: torch.Tensor | None = None
        self._rows: list[int] = []

    def add(self, rows: np.ndarray, pixels: np.ndarray, unread: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Take images (n, H, W, 3) of some rows; yield full batches, and what is left when no row of the block is unread."""
        at = 0
        while at < len(rows):
            if self._images is None:
                self._images = self.job.forward.staging(min(self.job.forward.batch.size, len(rows) - at + unread))
            filled = len(self._rows)
            n = min(len(rows) - at, len(self._images) - filled)
            self._images.numpy()[filled : filled + n] = pixels[at : at + n]
            self._rows += rows[at : at + n].tolist()
            at += n
            if len(self._rows) == len(self._images):
                yield self._batch(self._images)
        if self._images is not None and not unread:
            yield self._batch(self._images)

    def _batch(self, images: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
        rows, self._images, self._rows = np.array(self._rows), None, []
        return rows, images[: len(rows)]


def check_failures(failures: Failures, allowed: int, manifest: Manifest) -> None:
    """Stop when more images have failed than are allowed.

    Raises:
        DataError: They have; with the most frequent reasons.

    """
    if len(failures) <= allowed:
        return
    reasons: dict[str, int] = {}
    for reason in failures.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    listed = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])[:4])
    first = manifest.samples["id"].iloc[min(failures)]
    raise DataError(
        f"{len(failures)} images failed, more than the {allowed} that --max-failures allows: {listed} (first: {first}). "
        "Something may be wrong with the data as a whole. What was finished is kept; raise --max-failures to go on."
    )
