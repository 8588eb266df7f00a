"""Reading and decoding in worker processes, in order, with a bounded number of images in flight.

Workers import numpy and Pillow alone: no torch, no Zarr. A worker that is killed (out of memory, a decoder that crashes)
costs the images that it was on a second try, one by one; the image that kills it again is recorded as a failure.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, NamedTuple, cast

import numpy as np

from medprobe.images.exchange import Memory, Shape, leave, memory_for
from medprobe.images.geometry import Geometry
from medprobe.images.processes import follow_the_caller, interrupts_blocked
from medprobe.images.raster import (
    DIGEST_BYTES,
    WHOLE,
    ImageError,
    Region,
    content_digest,
    mask_box,
    read_rgb,
    read_source,
)
from medprobe.images.sources import ImageSource, Part, Payload, Slice, Source, Stamp
from medprobe.images.thumbnail import GEOMETRY, jpeg
from medprobe.memory import keep_freed_memory
from medprobe.storage import is_url

CHUNK = 24  # images: with two chunks in flight, enough to go on reading while a batch is encoded
_CHUNK_BYTES = 1 << 24  # of pixels that travel together, at most
# Chunks in flight for each worker: one at work and one at hand. No more than that fit loky's queue of calls, and what waits
# outside of it makes loky's own thread fail, with a traceback, when its workers are killed.
_AHEAD = 2
# Pixels that may wait for their turn: some for each worker, and no more however many there are, so that memory stays flat.
_WAITING_BYTES_EACH, _WAITING_BYTES = 1 << 25, 1 << 28
_KEPT_BYTES = 1 << 26  # freed memory that a worker keeps: for a chunk, and the images that it was made from


@dataclass
class Decoded:
    """A few consecutive images: pixels of those that could be read, digests of all, reasons for the others.

    Attributes:
        pixels: For each geometry uint8 (readable images, height, width, 3).
        readable: Boolean (images,).
        digests: uint8 (images, 16) of the source bytes; zeros where there were none.
        appearance: For each geometry float32 (images, 4): height and width of the source, mean and standard deviation
            of every fourth pixel's values in each direction; zeros where the image could not be read.
        reasons: Why each unreadable image is so, in their order.
        stamps: Of each image that was downloaded, what its server said of it then; None for files, which are looked at.
        thumbnails: Of the readable images, as JPEG files; none where none are wanted.

    """

    pixels: list[np.ndarray]
    readable: np.ndarray
    digests: np.ndarray
    appearance: list[np.ndarray]
    reasons: list[str]
    stamps: Sequence[Stamp | None]
    thumbnails: list[bytes] = field(default_factory=list)


def decode(payloads: Sequence[Payload], geometries: Sequence[Geometry], thumbnails: bool = False) -> Decoded:
    """Return some images, decoded once and resized for every geometry. Nothing is raised for a bad image."""
    pixels: list[list[np.ndarray]] = [[] for _ in geometries]
    readable = np.zeros(len(payloads), dtype=bool)
    digests = np.zeros((len(payloads), DIGEST_BYTES), dtype=np.uint8)
    appearance = [np.zeros((len(payloads), 4), dtype=np.float32) for _ in geometries]
    reasons = []
    small: list[bytes] = []
    with reading(payloads) as (read, stamps):
        for i, payload in enumerate(payloads):
            try:
                source, region = opened(payload, read)
                digests[i] = content_digest(source, region)
                size, found = read_rgb(source, geometries, region, [GEOMETRY] if thumbnails else ())
                if thumbnails:
                    small.append(jpeg(found.pop()))
                for images, looks, image in zip(pixels, appearance, found, strict=True):
                    images.append(image)
                    looks[i] = *size, *_mean_and_std(image[::4, ::4])
                readable[i] = True
            except ImageError as error:
                reasons.append(error.reason)
        said = stamps()
    stacks = [
        np.stack(images) if images else np.zeros((0, *geometry.size, 3), dtype=np.uint8)
        for images, geometry in zip(pixels, geometries, strict=True)
    ]
    return Decoded(stacks, readable, digests, appearance, reasons, said, small)


@contextlib.contextmanager
def reading(
    payloads: Sequence[Payload],
) -> Iterator[tuple[Callable[[str], bytes], Callable[[], Sequence[Stamp | None]]]]:
    """Give what reads the files of some payloads, and what then tells their stamps; downloads begin at once, together."""
    files = (path for p in payloads for path in ((p.path, p.mask) if isinstance(p, Part) else (p,)))
    if not any(map(is_url, files)):
        yield read_source, lambda: [None] * len(payloads)
        return
    from medprobe.images.download import Downloads

    with Downloads(payloads) as downloads:
        yield downloads.read, downloads.stamps


def _mean_and_std(pixels: np.ndarray) -> tuple[float, float]:
    values = pixels.astype(np.float64).ravel()  # numpy's own are several passes over strided memory
    mean = float(values.mean())
    return mean, math.sqrt(max(float(values @ values) / values.size - mean**2, 0.0))


def chunks(images: ImageSource, rows: Sequence[int], geometries: Sequence[Geometry]) -> Iterator[Sequence[int]]:
    """Yield the rows in chunks, each for one process: ``CHUNK`` images, fewer large ones, more slices of one volume.

    A volume is read once for the slices of a chunk; its chunks are as long as their pixels stay below some size.
    """
    most = max(1, _CHUNK_BYTES // _pixel_bytes([""], geometries))
    enough = min(CHUNK, most)
    start = 0
    for at in range(1, len(rows) + 1):
        full = at - start >= enough and (at == len(rows) or images.unit(rows[at]) != images.unit(rows[at - 1]))
        if full or at - start == most or at == len(rows):
            yield rows[start:at]
            start = at


def opened(payload: Payload, read: Callable[[str], bytes] = read_source) -> tuple[Source, Region]:
    """Return a file's bytes, a slice, or pixels, and what of them is meant.

    Args:
        payload: What a row is made from.
        read: What reads a file.

    Raises:
        ImageError: The file, or its mask, cannot be read.

    """
    if isinstance(payload, np.ndarray):
        return payload, WHOLE
    if isinstance(payload, str):
        return read(payload), WHOLE
    if isinstance(payload, Slice):
        from medprobe.images.volume import open_slice

        return open_slice(payload), WHOLE
    source, box = read(payload.path), payload.box
    if payload.mask is not None:
        try:
            box = mask_box(read(payload.mask))
        except ImageError as error:
            raise ImageError(f"mask: {error.reason}") from None
    return source, Region(payload.frame, box)


class Task(NamedTuple):
    """What :func:`decode` is asked for."""

    payloads: Sequence[Payload]
    geometries: Sequence[Geometry]
    thumbnails: bool = False


_Answer = tuple[Decoded, list[Shape] | None]


def _begin(caller: int) -> None:
    """Make ready what a worker is in, once."""
    follow_the_caller(caller)
    keep_freed_memory(_KEPT_BYTES)


def _decode_into(place: str | None, task: Task) -> _Answer:
    """Return :func:`decode` of a task, and the shapes of its pixels if these are left in the caller's memory."""
    decoded = decode(*task)
    shapes = leave(place, decoded.pixels) if place else None
    return (replace(decoded, pixels=[]) if shapes else decoded), shapes


def _pixel_bytes(chunk: Sequence[Payload], geometries: Sequence[Geometry]) -> int:
    return len(chunk) * sum(geometry.image_bytes for geometry in geometries)


@dataclass
class _Asked:
    """A task that the workers have.

    ``done`` is no question to the future: its lock, taken here at the moment of an interrupt, would stay taken, and the pool's
    own thread wait for ever.
    """

    task: Task
    memory: Memory | None
    future: Future[_Answer]
    done: bool = False

    @property
    def lost(self) -> bool:
        """Whether its worker was killed before it was done."""
        return self.done and isinstance(self.future.exception(), BrokenProcessPool)


class Decoder:
    """Decodes a stream of chunks in worker processes and gives the results in the stream's order.

    Args:
        workers: Number of processes; 0 decodes in this one.

    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: Any = None
        self._free: list[Memory] = []

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self.close()
        self._stop()

    def begin(self) -> None:
        """Start the processes, which takes them some tenths of a second, before there is anything to decode."""
        if self.workers:
            self._submit(Task([], []))

    def close(self) -> None:
        """End the processes, which do nothing at the moment: killed ones leave semaphores, of which Python complains."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
        self._free.clear()

    def run(self, chunks: Iterable[Sequence[Payload]], geometries: Sequence[Geometry]) -> Iterator[Decoded]:
        """Yield :func:`decode` of each chunk."""
        for decoded in self.stream(Task(chunk, geometries) for chunk in chunks):
            decoded.pixels = [pixels.copy() for pixels in decoded.pixels]
            yield decoded

    def stream(self, tasks: Iterable[Task]) -> Iterator[Decoded]:
        """Yield :func:`decode` of each task, which are chunks of images with their geometries.

        The pixels are there until the next is asked for, and then perhaps overwritten.

        Later ones are decoded while the first are waited for, as many as ``_WAITING_BYTES_EACH`` allow, two at least.
        """
        if self.workers == 0:
            for task in tasks:
                yield decode(*task)
            return
        rest = iter(tasks)
        finished: SimpleQueue[None] = SimpleQueue()  # an entry for each task that is done
        waiting: deque[_Asked] = deque()
        while True:
            self._fill_up(waiting, rest, finished)
            if not waiting:
                return
            if not waiting[0].done:
                finished.get()
                continue
            first = waiting.popleft()
            try:
                decoded, shapes = first.future.result()
                if first.memory is not None and shapes is not None:
                    decoded.pixels = first.memory.look(shapes)
                yield decoded
                if first.memory is not None:
                    self._free.append(first.memory)
            except BrokenProcessPool:
                self._stop()
                yield self._one_by_one(first.task)
                waiting = deque(a if a.done and not a.lost else self._ask(a.task, finished) for a in waiting)

    def _fill_up(self, waiting: deque[_Asked], rest: Iterator[Task], finished: SimpleQueue[None]) -> None:
        if any(asked.lost for asked in waiting):
            return  # first comes the turn of those
        bytes_waiting = sum(_pixel_bytes(*asked.task[:2]) for asked in waiting)
        enough = min(self.workers * _WAITING_BYTES_EACH, _WAITING_BYTES)
        at_work = sum(not asked.done for asked in waiting)
        while at_work < self.workers * _AHEAD and (bytes_waiting < enough or len(waiting) < _AHEAD):
            task = next(rest, None)
            if task is None:
                return
            waiting.append(self._ask(task, finished))
            at_work += 1
            bytes_waiting += _pixel_bytes(*task[:2])

    def _ask(self, task: Task, finished: SimpleQueue[None]) -> _Asked:
        memory = memory_for(_pixel_bytes(*task[:2]), self._free)
        asked = _Asked(task, memory, self._submit(task, memory))

        def note(_: Future[_Answer]) -> None:
            asked.done = True
            finished.put(None)

        asked.future.add_done_callback(note)
        return asked

    def _submit(self, task: Task, memory: Memory | None = None) -> Future[_Answer]:
        if self._pool is None:
            # loky does not import the caller's main module, so that a plain script may call medprobe.embed.
            from joblib.externals.loky import ProcessPoolExecutor

            self._pool = ProcessPoolExecutor(
                max_workers=self.workers, timeout=60, initializer=_begin, initargs=(os.getpid(),)
            )
        try:
            with interrupts_blocked():
                place = None if memory is None else memory.place
                return cast("Future[_Answer]", self._pool.submit(_decode_into, place, task))
        except BrokenProcessPool:  # by a chunk whose turn has not come yet
            self._stop()
            return self._submit(task, memory)

    def _one_by_one(self, task: Task) -> Decoded:
        parts = []
        for payload in task.payloads:
            try:
                parts.append(self._submit(task._replace(payloads=[payload])).result()[0])
            except BrokenProcessPool:
                self._stop()
                none = [np.zeros((0, *g.size, 3), dtype=np.uint8) for g in task.geometries]
                digest = np.zeros((1, DIGEST_BYTES), dtype=np.uint8)
                unseen = [np.zeros((1, 4), dtype=np.float32) for _ in task.geometries]
                reason = "killed the process that read it"
                parts.append(Decoded(none, np.zeros(1, dtype=bool), digest, unseen, [reason], [None]))
        return Decoded(
            [np.concatenate(stacks) for stacks in zip(*(p.pixels for p in parts), strict=True)],
            np.concatenate([p.readable for p in parts]),
            np.concatenate([p.digests for p in parts]),
            [np.concatenate(looks) for looks in zip(*(p.appearance for p in parts), strict=True)],
            [reason for p in parts for reason in p.reasons],
            [stamp for p in parts for stamp in p.stamps],
            thumbnails=[thumbnail for p in parts for thumbnail in p.thumbnails],
        )

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, kill_workers=True)
            self._pool = None
        self._free.clear()  # a process may be killed while it still writes there


def default_workers() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
