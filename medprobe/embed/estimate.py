"""What an embedding would take, from a few images of the data set itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medprobe.embed.forward import cores_for
from medprobe.embed.job import Job
from medprobe.images.decode import chunks, decode, default_workers
from medprobe.manifest import Manifest

_IMAGES = 32


@dataclass(frozen=True)
class Estimate:
    """What is left to do for one encoder.

    Attributes:
        images: Images to embed.
        bytes: What their features, digests and thumbnails take on the disk.
        seconds: Time on this machine, for this encoder alone: several share the reading.

    """

    images: int
    bytes: int
    seconds: float


def estimate(job: Job, blocks: Mapping[int, slice], manifest: Manifest, workers: int) -> Estimate:
    """Return what some blocks would take: a few images of theirs, evenly spaced, are read and encoded for it.

    Reading and encoding share the processors, unless there is a GPU: then the slower of the two decides.
    """
    spans = list(blocks.values())
    images = sum(span.stop - span.start for span in spans)
    plan = job.store.plan
    a_row = sum(width * np.dtype(plan.dtypes[view]).itemsize for view, width in plan.views.items())
    a_row += 16 + 16 + 16  # digest, size and time of change, appearance
    if not images:
        return Estimate(0, 0, 0.0)
    rows = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    some = rows[np.unique(np.linspace(0, len(rows) - 1, _IMAGES).astype(int))]
    if manifest.roles.bag is not None:  # a volume is opened for all of its slices, not for each
        some = np.array(next(chunks(manifest.images, rows.tolist(), [job.encoder.preprocess.geometry])))
    started = time.perf_counter()
    payloads = [manifest.images.payload(int(row)) for row in some]
    decoded = decode(payloads, [job.encoder.preprocess.geometry], job.store.thumbnail_bytes > 0)
    reading = (time.perf_counter() - started) / len(some)
    encoding = 0.0
    pixels = decoded.pixels[0]
    if len(pixels):
        batch = job.forward.staging(job.forward.batch.size)
        batch.numpy()[:] = np.resize(pixels, batch.shape)
        job.forward.finish(job.forward.launch(batch))  # the first batch finds its kernels
        with cores_for([job.forward]) as cores:
            started = time.perf_counter()
            at_work = [job.forward.launch(batch, cores) for _ in range(cores.n if cores else 1)]
            for parts in at_work:
                job.forward.finish(parts)
            encoding = (time.perf_counter() - started) / len(batch) / len(at_work)
    at_once = max(1, min(workers, default_workers()))
    on_cpu = job.encoder.device.type == "cpu"
    of_one = reading / at_once + encoding if on_cpu else max(reading / at_once, encoding)
    small = sum(map(len, decoded.thumbnails)) / len(some)
    return Estimate(images, round(images * (a_row + small)), of_one * images)
