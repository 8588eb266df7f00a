"""``embed``: from data and model names to finished stores."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from medprobe.embed.distribute import Model, Work, Worker, hand_out
from medprobe.embed.estimate import Estimate, estimate
from medprobe.embed.extend import in_place, in_store_order, rows_to_do
from medprobe.embed.job import prepare
from medprobe.embed.local import LocalWorker
from medprobe.embed.normalize import ENCODER, channel_statistics, parse_normalize, with_normalization
from medprobe.embed.pipeline import Progress, failures_before, fill_spans, spans_of
from medprobe.embed.precision import choose_devices
from medprobe.embed.ranks import share_of
from medprobe.embed.ray_actors import ray_workers
from medprobe.encoders.base import Encoder, LoadOptions
from medprobe.encoders.registry import load_encoder
from medprobe.errors import DataError, UsageError
from medprobe.images.decode import Decoder, decode, default_workers
from medprobe.images.geometry import Geometry
from medprobe.images.window import FILE, parse_window
from medprobe.manifest import Manifest, Reading, manifest_of
from medprobe.memory import keep_freed_memory
from medprobe.storage import AnyPlace, Place, Url, located
from medprobe.store import FeatureStore
from medprobe.store_place import settle
from medprobe.store_writer import is_store_at
from medprobe.volumes import few_volumes

log = logging.getLogger("medprobe")

BLOCK_ROWS = 1024
ENGINES = ("local", "ray")
_SAMPLE_IMAGES = 4
# Below this many failures a share of the data says little, so that the default limit does not stop the run.
_FEW_FAILURES = 10


@dataclass(frozen=True)
class EmbedReport:
    """What became of one encoder's store.

    Attributes:
        encoder: The encoder's name.
        path: The store; while other ranks have blocks of its extension to make, the draft of that.
        samples: Rows of the manifest.
        embedded: Rows embedded by this call; the others were there, or are other ranks'.
        missing: Blocks that are still to be made, by other ranks.
        failures: Rows without features, for reasons that the store keeps.
        precision: What the encoder computed in.
        seconds: Time that this call took for all encoders together, after the encoders were loaded.
        expected: Of a dry run, what is left to do.

    """

    encoder: str
    path: Place
    samples: int
    embedded: int
    missing: int
    failures: int
    precision: str
    seconds: float
    expected: Estimate | None = None


def embed(
    data: AnyPlace | Manifest,
    models: str | Encoder | Sequence[str | Encoder],
    out: AnyPlace,
    *,
    window: str = "file",
    weights: str | None = None,
    image_size: int | None = None,
    exact_decode: bool = False,
    tokens: bool = False,
    thumbnails: bool = False,
    normalize: str = ENCODER,
    device: str = "auto",
    engine: str = "local",
    precision: str = "auto",
    compile: bool = False,
    dtype: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    block_rows: int = BLOCK_ROWS,
    max_failures: str | float | None = None,
    check_digest: bool = False,
    overwrite: bool = False,
    extend: bool = False,
    dry_run: bool = False,
    limit: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    **reading: Unpack[Reading],
) -> list[EmbedReport]:
    """Embed every image of a data set with every model and return a report for each; images are decoded once for all.

    A store that is there is finished, not made again: blocks that are missing or damaged, and blocks whose unreadable
    images have changed since. Its samples keep their order, whatever the order of the data is now.

    Args:
        data: A folder, table, MedMNIST ``.npz``, the URL of objects or of a table (``s3://bucket/images``), or a
            :class:`~medprobe.manifest.Manifest`.
        models: Names such as ``imagenet/efficientnet-lite0``, or encoders.
        out: Folder of the stores, or a URL.
        window: How grey values of DICOM files and volumes are shown: ``file`` (its own), ``lung``, ``bone``, ``mammo`` and
            other names, centre and width such as ``-600,1500``, or percentiles such as ``p1-99``.
        weights: A checkpoint file for the one model that is named.
        image_size: Another input size than the encoder's own.
        exact_decode: Decode large JPEG files in full.
        tokens: Keep all patch tokens as well, as the view ``tokens``, for the attentive probe: some 300 KB an image.
        thumbnails: Keep a JPEG of each image, 96 pixels along its longer side, some 2 KB. These are images of patients and
            travel with the store.
        normalize: Whose mean and standard deviation: ``encoder``, ``dataset`` (of its training images), or six numbers
            ``mean,mean,mean,std,std,std`` in 0..1.
        device: ``auto``, ``cpu``, ``cuda`` (all that are there), ``mps``, or several such as ``cuda:0,cuda:1``, each with a
            process of its own.
        engine: ``local``, or ``ray`` for the devices of a Ray cluster.
        precision: ``auto``, ``fp32``, ``tf32`` (on a GPU), ``bf16`` or ``fp16``.
        compile: Compile the encoders (``torch.compile``), each with its first batch: minutes at first, faster from then on.
            Where that fails, or changes the features, they run as they are, with a warning.
        dtype: How features are kept: ``auto``, ``float16`` or ``float32``.
        batch_size: Images a forward pass, None to choose.
        workers: Decoding processes, None for one a processor, 0 for none.
        block_rows: Rows of a block, the unit of commit and of repeated work.
        max_failures: A number of images, or a share such as 0.01 or ``"1%"``, above which the run stops. The default is
            1 %, and no fewer than ten images, or ten volumes.
        check_digest: Compare every image with its digest in the store instead of size and time of change.
        overwrite: Delete stores that are there.
        extend: Add images that a store lacks behind the ones that it has, which are not embedded again. The store stays as it
            is, and can be read, until the longer one is complete and takes its place.
        dry_run: Change nothing, and report what is left to do, how large it will be and how long it will take.
        limit: Only the first so many images.
        rank: Which of several processes this one is, from 0; of torchrun or srun unless given.
        world_size: Number of processes that make one store together, each its own blocks.
        progress: Called after every batch.
        reading: How the data are read, as for :func:`~medprobe.manifest.read_manifest`: ``path_col``, ``label_cols``,
            ``group_col`` and others.

    Raises:
        UsageError: An argument or model name cannot work.
        DataError: The data cannot be used, too many images are unreadable, or a store belongs to something else.

    """
    manifest = manifest_of(data, **reading).head(limit)
    for note in manifest.notes:
        log.info("%s", note)
    names = [models] if isinstance(models, str | Encoder) else list(models)
    if not names:
        raise UsageError("--model: name at least one encoder (medprobe models lists them)")
    if weights is not None and len(names) > 1:
        raise UsageError("--weights: goes with one --model")
    for flag, value in (("--batch-size", batch_size), ("--block-rows", block_rows), ("--image-size", image_size)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value}: at least 1")
    if extend and overwrite:
        raise UsageError("--extend: keeps what --overwrite deletes; give one of them")
    share = share_of(rank, world_size)
    if share.world_size > 1:
        log.info("rank %d of %d: every %s block is made here", share.rank, share.world_size, _nth(share.world_size))
        if overwrite:
            raise UsageError(
                "--overwrite: not with several ranks, each of which would delete what the others have made"
            )
    allowed = failure_limit(max_failures, len(manifest), few_volumes(manifest, _FEW_FAILURES))
    devices = choose_devices(device, share)
    if devices[0].type == "cpu":
        keep_freed_memory()
    mode = parse_normalize(normalize)
    options = LoadOptions(weights=weights, image_size=image_size, exact_decode=exact_decode)
    encoders = [m if isinstance(m, Encoder) else load_encoder(m, options) for m in names]
    shown = parse_window(window)
    for encoder in encoders:
        geometry = replace(encoder.preprocess.geometry, slicing=manifest.slicing)
        if shown != FILE:  # an encoder that is handed over may have a window of its own
            geometry = replace(geometry, window=shown)
        encoder.preprocess = replace(encoder.preprocess, geometry=geometry)
    if len({e.name for e in encoders}) != len(encoders):
        raise UsageError("--model: the same encoder is named twice")
    if tokens:
        encoders = [encoder.with_tokens() for encoder in encoders]
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}: one of {', '.join(ENGINES)}")
    folder = located(out)
    if isinstance(folder, Url) and folder.is_read_only:
        raise UsageError(f"--out {folder}: a web server is only read from; write to s3://, gs:// or az://, or a folder")
    if extend and isinstance(folder, Url):
        raise UsageError(f"--extend: nothing can be renamed at {folder}; extend a copy of the stores in a folder")
    paths = [store_path(folder, encoder.name) for encoder in encoders]
    for path in paths:
        settle(path)
    if not overwrite:
        manifest = in_store_order(manifest, paths)
    with (
        Decoder(default_workers() if workers is None else workers) as decoder,
        tempfile.TemporaryDirectory(prefix="medprobe-") as elsewhere,
    ):
        here = engine == "local" and len(devices) == 1
        if here and not dry_run and any(overwrite or not is_store_at(path) for path in paths):
            decoder.begin()  # so that they start while the encoders are tried
        jobs = []
        statistics = cache(partial(channel_statistics, manifest, decoder))  # one reading of the images for all encoders
        for encoder, path in zip(encoders, paths, strict=True):
            extend_in = Path(elsewhere) if dry_run or isinstance(path, Url) else path.parent
            if dry_run and (overwrite or not is_store_at(path)):
                path = store_path(Path(elsewhere), encoder.name)
            resumed = path if is_store_at(path) and not overwrite else None
            with_normalization(encoder, mode, resumed, statistics)
            jobs.append(
                prepare(
                    encoder,
                    path,
                    manifest,
                    partial(_first_images, manifest, encoder.preprocess.geometry),
                    device=devices[0],
                    precision=precision,
                    dtype=dtype,
                    batch_size=batch_size,
                    block_rows=block_rows,
                    overwrite=overwrite,
                    compile=compile,
                    update=share.rank == 0 and not dry_run,
                    extend_in=extend_in if extend else None,
                    thumbnails=thumbnails,
                )
            )
        find = partial(rows_to_do, images=manifest.images, mine=share.has, check_digest=check_digest, dry_run=dry_run)
        to_do = [find(job) for job in jobs]
        if dry_run:
            return [
                replace(
                    _report(job.store.path, {}, 0.0),
                    path=path,
                    expected=estimate(job, blocks, manifest, decoder.workers),
                )
                for job, path, blocks in zip(jobs, paths, to_do, strict=True)
            ]
        started = time.perf_counter()
        spans, failures = spans_of(to_do), failures_before(jobs, to_do)
        if here:
            begun = Progress(total=sum(map(len, spans)))
            fill_spans(manifest, jobs, spans, decoder, failures, allowed, begun, progress)
        elif spans:
            to_load = tuple(Model.of(given, options, job) for given, job in zip(names, jobs, strict=True))
            each = decoder.workers // len(devices) or min(decoder.workers, 1)
            threads = max(1, default_workers() // len(devices))
            work = Work(manifest, to_load, batch_size, compile, each, threads, allowed)
            for job in jobs:
                job.encoder.to("cpu")  # the workers need the device
            stores = [job.store.path for job in jobs]
            hand_out(spans, _workers(work, devices, engine), manifest, stores, failures, allowed, progress)
    seconds = time.perf_counter() - started
    return [_report(in_place(job), blocks, seconds) for job, blocks in zip(jobs, to_do, strict=True)]


def _workers(work: Work, devices: Sequence[torch.device], engine: str) -> Sequence[Worker]:
    names = [str(device) for device in devices]
    return ray_workers(work, names) if engine == "ray" else [LocalWorker(work, name) for name in names]


def _nth(n: int) -> str:
    return {2: "second", 3: "third"}.get(n, f"{n}th")


def store_path(out: Place, encoder: str) -> Place:
    """Return where the store of an encoder lies in a folder of stores."""
    return out / (encoder.replace("/", "--").replace(":", "-") + ".zarr")


def failure_limit(max_failures: str | float | None, n: int, few: int = _FEW_FAILURES) -> int:
    """Return how many of ``n`` images may fail, from a number, a share below 1, a percentage or None for the default.

    The default is a hundredth, or ``few`` where that is more.

    Raises:
        UsageError: The value is none of these.

    """
    if max_failures is None:
        return max(n // 100, min(few, n - 1))
    text = str(max_failures).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise UsageError(f"--max-failures {max_failures}: a number of images, a share such as 0.01, or 1%")
    return int(value * n) if text.endswith("%") or value < 1 else int(value)


def _first_images(manifest: Manifest, geometry: Geometry) -> np.ndarray:
    """Return the first few readable images, on which an encoder is tried before anything is planned."""
    found = np.zeros((0, *geometry.size, 3), dtype=np.uint8)
    reason = ""
    for start in range(0, len(manifest), _SAMPLE_IMAGES):
        rows = range(start, min(start + _SAMPLE_IMAGES, len(manifest)))
        decoded = decode([manifest.images.payload(row) for row in rows], [geometry])
        found = np.concatenate([found, decoded.pixels[0]])[:_SAMPLE_IMAGES]
        reason = decoded.reasons[0] if decoded.reasons else reason
        if len(found) == _SAMPLE_IMAGES:
            break
    if not len(found):
        raise DataError(f"none of the {len(manifest)} images can be read (the last one: {reason}); nothing was written")
    return found


def _report(path: Place, blocks: Mapping[int, slice], seconds: float) -> EmbedReport:
    store = FeatureStore(path, partial=True)
    rows = sum(rows.stop - rows.start for rows in blocks.values())
    return EmbedReport(
        encoder=store.encoder,
        path=path,
        samples=store.plan.rows,
        embedded=rows,
        missing=len(store.missing_blocks),
        failures=len(store.failures),
        precision=store.plan.precision,
        seconds=seconds,
    )
