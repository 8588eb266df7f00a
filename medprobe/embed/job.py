"""One encoder at work on one store: what to compute, in which precision, and where it goes."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medprobe.embed.forward import BatchSize, Forward, to_pixels
from medprobe.embed.precision import MIN_COSINE, choose_precision, lowest_cosine
from medprobe.encoders.base import Encoder, fingerprint
from medprobe.errors import DataError, UsageError
from medprobe.images.thumbnail import MAX_BYTES
from medprobe.manifest import Manifest
from medprobe.store import FeatureStore
from medprobe.store_records import Plan
from medprobe.store_writer import create_store, replace_samples
from medprobe.tables import ids_digest

log = logging.getLogger("medprobe")

DTYPES = ("auto", "float16", "float32")
# A view is kept in float32 when the first images come within this of float16's largest number.
_FLOAT16_MARGIN = 16.0


@dataclass
class Job:
    """An encoder, ready on its device, and the store that it fills."""

    forward: Forward
    store: FeatureStore

    @property
    def encoder(self) -> Encoder:
        """The encoder."""
        return self.forward.encoder

    @property
    def made_with(self) -> dict[str, str]:
        """Where and with which versions a block is made; kept in its commit record."""
        device = self.encoder.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"device": name, "torch": torch.__version__}


def prepare(
    encoder: Encoder,
    path: Path,
    manifest: Manifest,
    sample: Callable[[], np.ndarray],
    *,
    device: torch.device,
    precision: str,
    dtype: str,
    batch_size: int | None,
    block_rows: int,
    overwrite: bool,
    update: bool = True,
    thumbnails: bool | None = None,
) -> Job:
    """Return the job for one encoder: its store made, or the one that is there checked and brought up to date.

    Args:
        encoder: On the CPU, in float32.
        path: Where the store is or will be.
        manifest: What is to be embedded.
        sample: Gives a few readable images, uint8 (n, H, W, 3), on which precision and range are tried for a store that
            is made here.
        device: Where to compute.
        precision: ``auto``, or what the user wants.
        dtype: How features are kept: ``auto`` is float16 unless a view's values are too large for it.
        batch_size: Images a forward pass, None to choose.
        block_rows: Rows of a block, for a store that is made here.
        overwrite: Delete the store that is there.
        update: Bring the columns of a store that is there up to date: one process does that, not several.
        thumbnails: Whether a thumbnail of each image is to be kept; None where the store is there and knows.

    Raises:
        DataError: The store that is there was made from other images, weights or preprocessing.

    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: one of {', '.join(DTYPES)}")
    is_there = path.exists()
    if overwrite and is_there and not (path / "zarr.json").exists():
        raise DataError(f"--overwrite: {path} is there and is no feature store; it is left alone")
    provenance = encoder.provenance()
    encoder.to(device)
    if device.type in {"cpu", "cuda"}:
        encoder.module.to(memory_format=torch.channels_last)
    size = BatchSize.of(batch_size, device, 3 * math.prod(encoder.preprocess.geometry.size))
    if is_there and not overwrite:
        store = FeatureStore(path, partial=True)
        _check_same(store, manifest, provenance, precision, dtype, thumbnails)
        if store.thumbnail_bytes and thumbnails is False:
            log.info("%s: goes on with thumbnails, as it was begun", path.name)
        try:
            replaced = update and replace_samples(store, manifest.samples, _roles(manifest))
        except OSError as error:
            raise DataError(f"{path}: its table of samples could not be written: {error.strerror or error}") from error
        if replaced:
            log.info("%s: labels and other columns brought up to date; nothing is embedded again for that", path.name)
            store = FeatureStore(path, partial=True)
        return Job(Forward(encoder, store.plan.precision, size), store)
    chosen, largest = _tried_precision(encoder, sample(), precision, device)
    wide = {
        view: dtype == "float32" or (dtype == "auto" and value * _FLOAT16_MARGIN > 65504)
        for view, value in largest.items()
    }
    plan = Plan(
        encoder=provenance,
        fingerprint=fingerprint(provenance, chosen),
        precision=chosen,
        views=dict(encoder.views),
        dtypes={view: "float32" if wide[view] else "float16" for view in encoder.views},
        default_view=encoder.default_view,
        rows=len(manifest),
        block_rows=block_rows,
        manifest_sha256=ids_digest(manifest.samples["id"]),
    )
    if is_there:
        shutil.rmtree(path)  # only once everything that could go wrong with its successor has gone well
    try:
        store = create_store(
            path,
            plan,
            manifest.samples,
            _roles(manifest),
            card={**encoder.card.to_dict(), "parameters": str(encoder.n_parameters)},
            versions=versions(),
            thumbnail_bytes=MAX_BYTES if thumbnails else 0,
        )
    except OSError as error:
        raise DataError(f"{path} could not be made: {error.strerror or error}") from error
    if store.plan != plan or bool(store.thumbnail_bytes) != bool(thumbnails):  # another process was first
        _check_same(store, manifest, provenance, precision, dtype, thumbnails)
    return Job(Forward(encoder, store.plan.precision, size), store)


def _tried_precision(
    encoder: Encoder, sample: np.ndarray, precision: str, device: torch.device
) -> tuple[str, Mapping[str, float]]:
    """Return the precision to compute in, and the largest value of each view; ``auto`` falls back to fp32 on evidence."""
    chosen = choose_precision(precision, device)
    # One by one: nothing is known yet about how many fit the device's memory.
    tries = [lowest_cosine(encoder, to_pixels(encoder, torch.from_numpy(image[None])), chosen) for image in sample]
    cosine = min(lowest for lowest, _ in tries)
    largest = {view: max(found[view] for _, found in tries) for view in encoder.views}
    if chosen != "fp32" and precision == "auto" and cosine < MIN_COSINE:
        log.warning(
            "%s: %s differs from fp32 (cosine %.5f on the first images): fp32 is used", encoder.name, chosen, cosine
        )
        return "fp32", largest
    return chosen, largest


def _check_same(
    store: FeatureStore,
    manifest: Manifest,
    provenance: Mapping[str, Any],
    precision: str,
    dtype: str,
    thumbnails: bool | None,
) -> None:
    """Compare an existing store with what is asked for and name every difference."""
    plan = store.plan
    differences = []
    if plan.manifest_sha256 != ids_digest(manifest.samples["id"]):
        held, asked = set(store.manifest["id"]), set(manifest.samples["id"])
        extra, gone = sorted(asked - held), sorted(held - asked)
        if extra:
            differences.append(f"{len(extra)} images are not in the store (first: {extra[0]})")
        if gone:
            differences.append(f"{len(gone)} images of the store are not in the data (first: {gone[0]})")
        if not extra and not gone:
            differences.append("the images are in another order")
    now, was = _flat(_as_json(provenance)), _flat(plan.encoder)
    differences += [
        f"{key} is {_short(now.get(key))}, was {_short(was.get(key))}"
        for key in sorted(now.keys() | was.keys())
        if now.get(key) != was.get(key)
    ]
    if precision != "auto" and precision != plan.precision:
        differences.append(f"precision is {precision}, was {plan.precision}")
    if dtype != "auto" and set(plan.dtypes.values()) != {dtype}:
        differences.append(f"dtype is {dtype}, was {', '.join(sorted(set(plan.dtypes.values())))}")
    if thumbnails and not store.thumbnail_bytes:
        differences.append("thumbnails are asked for (--thumbnails), and it was begun without them")
    if differences:
        raise DataError(
            f"{store.path} was made from something else: {'; '.join(differences)}. "
            "Use another folder (-o), or --overwrite to delete that store and embed everything again."
        )


def versions() -> dict[str, str]:
    """Return the versions of what takes part in embedding."""
    found = {"python": platform.python_version()}
    for package in (
        "medprobe",
        "torch",
        "torchvision",
        "timm",
        "transformers",
        "open_clip_torch",
        "pillow",
        "nibabel",
        "numpy",
        "zarr",
    ):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _roles(manifest: Manifest) -> dict[str, Any]:
    roles = manifest.roles
    found = {"labels": list(roles.labels), "group": roles.group, "split": roles.split, "data": manifest.name}
    return found if roles.bag is None else {**found, "bag": roles.bag}


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _flat(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Return nested mappings as one, ``preprocess.mean`` for example, so that a difference is named where it is."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{start}{key}.") if isinstance(value, Mapping) else {f"{start}{key}": value}
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:16] + "..."
