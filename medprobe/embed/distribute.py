"""Blocks handed to several workers as these come free: processes of this machine, or actors of a Ray cluster.

Nothing is believed that a worker says of its blocks: after each death the commit records tell what is left.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

import numpy as np
import torch

from medprobe.embed.block import Span
from medprobe.embed.job import Job, prepare
from medprobe.embed.pipeline import Failures, Progress, check_failures, fill_spans
from medprobe.encoders.base import TOKENS, Encoder, LoadOptions, Preprocess
from medprobe.encoders.registry import load_encoder
from medprobe.errors import DataError
from medprobe.images.decode import Decoder
from medprobe.images.processes import interrupts_blocked
from medprobe.manifest import Manifest
from medprobe.memory import keep_freed_memory
from medprobe.storage import Place
from medprobe.store import FeatureStore

log = logging.getLogger("medprobe")

ATTEMPTS = 3
_SECONDS = 20.0  # of work at once: a worker stands still between two pieces, for a fraction of a second


@dataclass(frozen=True)
class Model:
    """An encoder that a worker loads, as the first process has set it up, and its store."""

    encoder: str | Encoder
    options: LoadOptions
    preprocess: Preprocess
    tokens: bool
    store: Place

    @classmethod
    def of(cls, given: str | Encoder, options: LoadOptions, job: Job) -> Model:
        """Return what a job's encoder is to others: its name where it has one, else the object itself."""
        return cls(given, options, job.encoder.preprocess, TOKENS in job.encoder.views, job.store.path)

    def load(self) -> Encoder:
        """Return the encoder, on the CPU."""
        encoder = self.encoder if isinstance(self.encoder, Encoder) else load_encoder(self.encoder, self.options)
        encoder.preprocess = self.preprocess
        return encoder.with_tokens() if self.tokens and TOKENS not in encoder.views else encoder


@dataclass(frozen=True)
class Work:
    """What is to be done, as far as workers have to know.

    Attributes:
        manifest: The images.
        models: The encoders and their stores, which are there.
        batch_size: Images a forward pass, None to choose.
        compile: Whether to compile the encoders.
        decoders: Decoding processes of each worker.
        threads: Threads of each worker that computes on the CPU.
        allowed_failures: Above how many failed images to stop.

    """

    manifest: Manifest
    models: tuple[Model, ...]
    batch_size: int | None
    compile: bool
    decoders: int
    threads: int
    allowed_failures: int


class Maker:
    """Makes blocks in one worker, on one device; encoders and decoding processes stay between pieces of work."""

    def __init__(self, work: Work, device: str) -> None:
        self._work, self._device = work, torch.device(device)
        self._jobs: list[Job] = []
        self._decoder = Decoder(work.decoders)

    def make(self, spans: Sequence[Span]) -> tuple[Failures, Progress]:
        """Make blocks and return what failed in them and what they took.

        Raises:
            DataError: As :func:`~medprobe.embed.pipeline.fill_spans`.

        """
        if not self._jobs:
            if self._device.type == "cpu":
                keep_freed_memory()
                torch.set_num_threads(self._work.threads)
            self._jobs = [self._job(model) for model in self._work.models]
        progress = Progress(total=sum(map(len, spans)))
        failures: Failures = {}
        limit = self._work.allowed_failures
        fill_spans(self._work.manifest, self._jobs, spans, self._decoder, failures, limit, progress)
        return failures, progress

    def close(self) -> None:
        """End the decoding processes."""
        self._decoder.close()

    def _job(self, model: Model) -> Job:
        return prepare(
            model.load(),
            model.store,
            self._work.manifest,
            _nothing,
            device=self._device,
            precision="auto",  # of the store, as everything else
            dtype="auto",
            batch_size=self._work.batch_size,
            block_rows=0,
            overwrite=False,
            compile=self._work.compile,
            update=False,
        )


def _nothing() -> np.ndarray:
    raise AssertionError("the store is there: nothing has to be tried")


class Worker(Protocol):
    """A process somewhere that makes blocks, one piece of work at a time."""

    @property
    def died(self) -> tuple[type[BaseException], ...]:
        """What :meth:`make` raises when the process is no more."""
        ...

    def make(self, spans: Sequence[Span]) -> tuple[Failures, Progress]:
        """Have blocks made, and wait for it."""
        ...

    def restart(self) -> None:
        """Take the place of a process that is no more."""
        ...

    def close(self) -> None:
        """End the process, which does nothing at the moment."""
        ...

    def kill(self) -> None:
        """End the process, whatever it does."""
        ...


@dataclass
class _Pieces:
    """Blocks that wait for a worker."""

    waiting: deque[Span]
    workers: int
    attempts: Counter[Span] = field(default_factory=Counter)
    a_block: float = _SECONDS  # seconds

    def take(self) -> list[Span]:
        """Return some of them: work for a while, and never so much that other workers have none in the end."""
        first = self.waiting.popleft()
        if self.attempts[first]:
            return [first]  # alone, so that if it is this one that kills, it costs no other
        n = min(int(_SECONDS / self.a_block), len(self.waiting) // (2 * self.workers))
        return [first, *(self.waiting.popleft() for _ in range(n - 1))]

    def lost(self, spans: Sequence[Span]) -> None:
        """Have blocks made again whose worker is no more.

        Raises:
            DataError: One of them has killed too many.

        """
        for span in spans:
            self.attempts[span] += 1
            if self.attempts[span] == ATTEMPTS:
                raise DataError(
                    f"the images {span.start} to {span.stop - 1} have ended {ATTEMPTS} processes, perhaps for want of memory. "
                    "Other blocks are kept; the same command goes on from here."
                )
        self.waiting.extend(spans)


def hand_out(
    spans: Sequence[Span],
    workers: Sequence[Worker],
    manifest: Manifest,
    stores: Sequence[Place],
    failures: Failures,
    allowed_failures: int,
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Have all blocks made, each by whichever worker is free; what a dead one leaves is made by another.

    Args:
        spans: The blocks, and for which stores.
        workers: Who makes them. All are ended at the end, and when something goes wrong.
        manifest: The images.
        stores: The stores.
        failures: Of the blocks that are finished; more are added.
        allowed_failures: Above how many to stop.
        report: Called whenever a piece of work is done.

    Raises:
        DataError: Too many images fail, the disk refuses, or a block ends every process that makes it.

    """
    pieces = _Pieces(deque(spans), len(workers))
    progress = Progress(total=sum(map(len, spans)))
    results: SimpleQueue[_Result] = SimpleQueue()
    hands = [_Hand(worker, results) for worker in workers]
    idle, busy = list(hands), 0
    try:
        with interrupts_blocked():
            for hand in hands:
                hand.start()
        while pieces.waiting or busy:
            while idle and pieces.waiting:
                idle.pop().pieces.put(pieces.take())
                busy += 1
            result = results.get()
            busy -= 1
            idle.append(result.hand)
            if isinstance(result.error, result.hand.worker.died):
                left = _uncommitted(result.piece, stores)
                log.warning("a worker has died: %d blocks are made again", len(left))
                pieces.lost(left)
                result.hand.worker.restart()
                continue
            if result.error is not None:
                raise result.error
            pieces.a_block = result.seconds / len(result.piece)
            failures |= result.failures
            progress.add(result.took, len(workers))
            progress.failures = len(failures)
            check_failures(failures, allowed_failures, manifest)
            if report is not None:
                report(progress)
    except BaseException:
        for worker in workers:
            worker.kill()
        raise
    finally:
        for hand in hands:
            hand.pieces.put(None)
    for worker in workers:
        worker.close()


@dataclass
class _Result:
    """What became of a piece of work."""

    hand: _Hand
    piece: list[Span]
    failures: Failures = field(default_factory=dict)
    took: Progress = field(default_factory=lambda: Progress(0))
    seconds: float = 0.0
    error: BaseException | None = None


class _Hand(Thread):
    """Gives a worker its pieces and waits for what becomes of them.

    The caller's own thread, in which interrupts arrive, waits at a ``SimpleQueue`` alone: the lock of a future, taken there at
    the moment of an interrupt, would stay taken, and whoever needs it next wait for ever.
    """

    def __init__(self, worker: Worker, results: SimpleQueue[_Result]) -> None:
        super().__init__(name="hand", daemon=True)
        self.worker, self._results = worker, results
        self.pieces: SimpleQueue[list[Span] | None] = SimpleQueue()

    def run(self) -> None:
        """Work until there is nothing more to do."""
        while (piece := self.pieces.get()) is not None:
            result, started = _Result(self, piece), time.perf_counter()
            try:
                result.failures, result.took = self.worker.make(piece)
            except BaseException as error:
                result.error = error
            result.seconds = time.perf_counter() - started
            self._results.put(result)


def _uncommitted(spans: Sequence[Span], stores: Sequence[Place]) -> list[Span]:
    opened = [FeatureStore(path, partial=True) for path in stores]

    def is_done(span: Span) -> bool:
        return all(span.start // opened[i].plan.block_rows in opened[i].commits for i in span.wanted)

    return [span for span in spans if not is_done(span)]
