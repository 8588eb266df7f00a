"""One encoder at work on one store: what to compute, in which precision, and where it goes."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from medprobe.storage import Place
from medprobe.store import FeatureStore
from medprobe.store_extension import bases_of, begins, draft_path, drafts_of, extended_path
from medprobe.store_place import alone
from medprobe.store_records import Plan
from medprobe.store_writer import create_store, is_store_at, remove_store, replace_samples
from medprobe.tables import ids_digest

log = logging.getLogger("medprobe")

DTYPES = ("auto", "float16", "float32")
# A view is kept in float32 when the first images come within this of float16's largest number.
_FLOAT16_MARGIN = 16.0


@dataclass
class Job:
    """An encoder, ready on its device, and the store that it fills.

    Attributes:
        forward: The encoder at work.
        store: The store, or the draft of a longer one that is to take its place.
        bases: Stores that a draft takes over blocks from.

    """

    forward: Forward
    store: FeatureStore
    bases: list[FeatureStore] = field(default_factory=list)

    @property
    def encoder(self) -> Encoder:
        """The encoder."""
        return self.forward.encoder

    @property
    def made_with(self) -> dict[str, str]:
        """Where and with which versions a block is made; kept in its commit record."""
        device = self.encoder.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        compiled = {"compiled": "torch.compile"} if self.encoder.is_compiled else {}
        return {"device": name, "torch": torch.__version__, **compiled}

    def begun(self, row: int) -> tuple[FeatureStore, int]:
        """Return the shorter store that ends before a row, and the number of its last block, which is not full."""
        base = next(base for base in self.bases if base.plan.rows == row)
        return base, base.plan.n_blocks - 1


def prepare(
    encoder: Encoder,
    path: Place,
    manifest: Manifest,
    sample: Callable[[], np.ndarray],
    *,
    device: torch.device,
    precision: str,
    dtype: str,
    batch_size: int | None,
    block_rows: int,
    overwrite: bool,
    compile: bool = False,
    update: bool = True,
    extend_in: Path | None = None,
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
        compile: Compile the encoder with its first batch.
        update: Bring the columns of a store that is there up to date: one process does that, not several.
        extend_in: Where the draft of a longer store is made when the manifest has more samples than the store that is there,
            which begin with that store's in its order; an error unless given.
        thumbnails: Whether a thumbnail of each image is to be kept; None where the store is there and knows.

    Raises:
        DataError: The store that is there was made from other images, weights or preprocessing.

    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: one of {', '.join(DTYPES)}")
    is_there = is_store_at(path)
    if overwrite and is_there and not (path / "zarr.json").exists():
        raise DataError(f"--overwrite: {path} is there and is no feature store; it is left alone")
    provenance = encoder.provenance()
    encoder.to(device)
    if device.type in {"cpu", "cuda"}:
        encoder.module.to(memory_format=torch.channels_last)
    size = BatchSize.of(batch_size, device, encoder.preprocess.geometry.image_bytes)
    if is_there and not overwrite:
        store = FeatureStore(path, partial=True)
        _check_same(store, manifest, provenance, precision, dtype, extend_in is not None, thumbnails)
        if store.thumbnail_bytes and thumbnails is False:
            log.info("%s: goes on with thumbnails, as it was begun", path.name)
        base = extended_path(path)
        if store.plan.rows < len(manifest):
            assert isinstance(path, Path)
            assert extend_in is not None
            with alone(path.parent):  # else another rank could put its draft in place, and this one begin it once more
                store = FeatureStore(path, partial=True)
                if store.plan.rows < len(manifest):
                    base, store = path, _draft(store, manifest, path, extend_in)
            _check_same(store, manifest, provenance, precision, dtype, False, thumbnails)
        bases = []
        if base is not None:
            with alone(base.parent):  # else one could be swept away while it is read
                bases = bases_of(base, store.plan, manifest.samples["id"])
        try:
            replaced = update and replace_samples(store, manifest.samples, _roles(manifest))
        except OSError as error:
            raise DataError(f"{path}: its table of samples could not be written: {error.strerror or error}") from error
        if replaced:
            log.info("%s: labels and other columns brought up to date; nothing is embedded again for that", path.name)
            store = FeatureStore(store.path, partial=True)
        return Job(Forward(encoder, store.plan.precision, size, compile), store, bases)
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
        for old in (
            path,
            *drafts_of(path),
        ):  # only once everything that could go wrong with its successor has gone well
            remove_store(old)
    card = {**encoder.card.to_dict(), "parameters": str(encoder.n_parameters)}
    store = _created(path, plan, manifest, card, versions(), MAX_BYTES if thumbnails else 0)
    if store.plan != plan or bool(store.thumbnail_bytes) != bool(thumbnails):  # another process was first
        _check_same(store, manifest, provenance, precision, dtype, False, thumbnails)
    return Job(Forward(encoder, store.plan.precision, size, compile), store)


def _draft(store: FeatureStore, manifest: Manifest, base: Path, folder: Path) -> FeatureStore:
    """Return the draft of a store with all of the manifest's samples: the one that was begun, or else one in a folder."""
    plan = replace(store.plan, rows=len(manifest), manifest_sha256=ids_digest(manifest.samples["id"]))
    path = draft_path(base, plan)
    log.info("%s: %d samples are added to its %d", store.path.name, plan.rows - store.plan.rows, store.plan.rows)
    path = path if path.exists() else folder / path.name
    return _created(path, plan, manifest, store.card, store.versions, store.thumbnail_bytes)


def _created(
    path: Place,
    plan: Plan,
    manifest: Manifest,
    card: Mapping[str, str],
    versions: Mapping[str, str],
    thumbnail_bytes: int,
) -> FeatureStore:
    try:
        return create_store(
            path,
            plan,
            manifest.samples,
            _roles(manifest),
            card=card,
            versions=versions,
            thumbnail_bytes=thumbnail_bytes,
        )
    except OSError as error:
        raise DataError(f"{path} could not be made: {error.strerror or error}") from error


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
    extend: bool,
    thumbnails: bool | None,
) -> None:
    """Compare an existing store with what is asked for and name every difference; more samples are one unless ``extend``."""
    plan, ids = store.plan, manifest.samples["id"]
    differences, remedy = [], ""
    if begins(ids, plan):
        if not extend:
            differences.append(f"{len(ids) - plan.rows} images are not in the store (first: {ids[plan.rows]})")
            remedy = "--extend embeds them and keeps the others as they are. "
    elif plan.manifest_sha256 != ids_digest(ids):
        held, asked = set(store.manifest["id"]), set(ids)
        extra, gone = sorted(asked - held), sorted(held - asked)
        if extra:
            differences.append(f"{len(extra)} images are not in the store (first: {extra[0]})")
        if gone:
            differences.append(f"{len(gone)} images of the store are not in the data (first: {', '.join(gone[:3])})")
            remedy = "Nothing is taken out of a store: put them back. "
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
            f"{store.path} was made from something else: {'; '.join(differences)}. {remedy if len(differences) == 1 else ''}"
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
