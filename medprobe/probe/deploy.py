"""Probes that leave the table: saved beside their numbers, and applied to other images of the same encoder."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError
from medprobe.probe.bags import AnyRows, Bags
from medprobe.probe.features import TOKENS
from medprobe.probe.saved import SavedProbe, load_probe, save_probe
from medprobe.probe.selection import fit_part
from medprobe.probe.splits import Part
from medprobe.probe.targets import Floats
from medprobe.storage import AnyPlace, Place, Url, located
from medprobe.store import FeatureStore, open_store
from medprobe.volumes import Slicing

if TYPE_CHECKING:
    from medprobe.encoders.base import Encoder
    from medprobe.probe.run import Trial
    from medprobe.probe.selection import Fitted
    from medprobe.results import Row

log = logging.getLogger("medprobe")

SUFFIX = ".probe"


def save_trial(
    trial: Trial,
    fitted: Sequence[Fitted],
    rows: Sequence[Row],
    stores: Sequence[AnyRows],
    folder: Path,
    *,
    seed: int,
) -> Path:
    """Write the probe that was tested; over several parts, one that is fitted to all of their rows. Return its path."""
    question, features = trial.question, trial.features
    parts = question.split.parts
    if len(parts) == 1:
        (chosen,), n_train = fitted, rows[0].n_train
    else:
        everything = np.unique(np.concatenate([np.concatenate([part.fitted, part.test]) for part in parts]))
        whole = Part(everything, None, everything[:0])
        chosen, n_train = fit_part(trial.family, features.views, question, whole, seed, trial.pca), len(everything)
    stores = stores[: len(features.parts[chosen.view])]  # patch tokens are those of the first one alone
    saved = SavedProbe(
        estimator=chosen.estimator,
        family=trial.family.name,
        encoders=tuple(store.encoder for store in stores),
        views=features.parts[chosen.view],
        fingerprints=tuple(store.plan.fingerprint for store in stores),
        target=question.target.name,
        task=question.target.task,
        classes=question.target.classes,
        settings=chosen.settings,
        notes={
            "medprobe": rows[0].medprobe,
            "data": question.data,
            "split": question.split.name,
            "n_train": n_train,
            "metrics": {row.metric: [row.value, row.ci_low, row.ci_high] for row in rows if not row.subgroup},
            "precision": [store.plan.precision for store in stores],
            "preprocess": [dict(store.plan.encoder["preprocess"]) for store in stores],
        },
        n_features=features.views[chosen.view].shape[1],
        bag=stores[0].by if isinstance(stores[0], Bags) else "",
    )
    folder.mkdir(parents=True, exist_ok=True)
    words = "--".join([features.encoder, chosen.view, trial.family.name, question.target.name])
    return save_probe(saved, folder / (re.sub(r"[^A-Za-z0-9_.@-]+", "-", words) + SUFFIX))


def predict(
    model: str | os.PathLike[str],
    data: AnyPlace | FeatureStore | Sequence[AnyPlace | FeatureStore],
    *,
    weights: str | None = None,
    device: str = "auto",
    frames: str | None = None,
    volumes: str | None = None,
) -> pd.DataFrame:
    """Return id, predicted class and probability of each class (of each label: 0 or 1, and its probability).

    Images without features, which could not be read, are there, too, without a prediction. A probe of volumes predicts
    volumes; they are sliced and pooled as those were that it was fitted to.

    Args:
        model: What ``medprobe probe --save-model`` wrote.
        data: A store of the probe's encoder, or one of each of its encoders, or images as :func:`medprobe.embed` takes
            them: these are embedded with the encoder's name and preprocessing into a folder that is deleted.
        weights: The encoder's checkpoint file, where it was embedded with one.
        device: Where images are embedded.
        frames: Which frames of files of several are meant: ``first``, ``middle``, ``all`` or ``every:N``.
        volumes: ``series`` takes the DICOM series of a folder as volumes.

    Raises:
        DataError: The features are another encoder's (or the same one's with other weights, preprocessing or
            precision), or files cannot be read.
        UsageError: Another number of stores than the probe has encoders.

    """
    saved = load_probe(Path(model))
    several = [data] if isinstance(data, str | os.PathLike | Url | FeatureStore) else list(data)
    if all(isinstance(item, FeatureStore) or (located(item) / "zarr.json").is_file() for item in several):
        return _predict(saved, [item if isinstance(item, FeatureStore) else open_store(item) for item in several])
    if len(several) > 1:
        raise UsageError("predict takes stores, or one folder or table of images")
    images = several[0]
    assert not isinstance(images, FeatureStore)
    with tempfile.TemporaryDirectory(prefix="medprobe-") as folder:
        return _predict(saved, _embedded(saved, located(images), Path(folder), weights, device, frames, volumes))


def _predict(saved: SavedProbe, stores: Sequence[FeatureStore]) -> pd.DataFrame:
    if len(stores) != len(saved.encoders):
        raise UsageError(f"the probe takes features of {' and '.join(saved.encoders)}: {len(stores)} stores were given")
    by_fingerprint = {store.plan.fingerprint: Bags(store, saved.bag) if saved.bag else store for store in stores}
    ids: np.ndarray | None = None
    asked: pd.Series | None = None
    parts = []
    for encoder, view, fingerprint in zip(saved.encoders, saved.views, saved.fingerprints, strict=True):
        if fingerprint not in by_fingerprint:
            held = ", ".join(f"{store.encoder} ({store.plan.fingerprint[:8]})" for store in stores)
            raise DataError(
                f"the probe takes features of {encoder} ({fingerprint[:8]}), and these are of {held}: another encoder, or "
                "the same one with other weights, preprocessing or precision"
            )
        store = by_fingerprint[fingerprint]
        own = pd.Index(store.samples["id"])
        ids = own.to_numpy() if ids is None else ids[np.isin(ids, own)]
        asked = store.manifest["id"] if asked is None else asked
        parts.append((own, store, view))
    assert ids is not None
    assert asked is not None
    if not len(ids):
        raise DataError("no sample has features in every store")
    X = np.concatenate([store.features(view)[own.get_indexer(ids)] for own, store, view in parts], axis=1)
    proba = np.asarray(saved.estimator.predict_proba(X), dtype=np.float64)
    table = _table(saved, proba, ids)
    if len(asked) > len(ids):
        lost = asked[~asked.isin(ids)]
        log.warning(
            "%d of %d images have no features and get no prediction (first: %s)", len(lost), len(asked), lost.iloc[0]
        )
        table = table.reindex(pd.Index(asked, name="id"))
    return table.reset_index()


def _table(saved: SavedProbe, proba: Floats, ids: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame(index=pd.Index(ids, name="id"))
    if saved.task == "multilabel":
        for name, column in zip(saved.classes, proba.T, strict=True):
            table[name] = pd.array(column > 0.5, dtype="Int64")  # integers even beside missing ones
            table[f"p({name})"] = column
        return table
    known = [saved.classes[int(code)] for code in saved.estimator.classes_]
    table["predicted"] = [known[i] for i in proba.argmax(axis=1)]
    for name, column in zip(known, proba.T, strict=True):
        table[f"p({name})"] = column
    return table


def _embedded(
    saved: SavedProbe,
    data: Place,
    folder: Path,
    weights: str | None,
    device: str,
    frames: str | None,
    volumes: str | None,
) -> list[FeatureStore]:
    """Return stores of images, made with the preprocessing and precision that the probe's own stores were made with."""
    try:
        from medprobe.embed.run import embed
    except ModuleNotFoundError as error:
        raise UsageError(f"predict on images needs {error.name}: pip install 'medprobe[embed]'") from None
    stores = []
    recorded = zip(saved.encoders, saved.notes["preprocess"], saved.notes["precision"], saved.views, strict=True)
    for name, preprocess, precision, view in recorded:
        encoder = _encoder(name, preprocess, weights)
        slicing = Slicing.read(preprocess["slices"]) if "slices" in preprocess else None
        (report,) = embed(
            data,
            encoder,
            folder,
            device=device,
            precision=precision,
            tokens=view == TOKENS,
            frames=frames,
            volumes=volumes,
            slice_axis=None if slicing is None else slicing.axis,
            slices=None if slicing is None else str(slicing.slices),
        )
        stores.append(FeatureStore(report.path))
    return stores


def _encoder(name: str, preprocess: Mapping[str, Any], weights: str | None) -> Encoder:
    """Return the encoder with the preprocessing that a store has recorded."""
    from medprobe.encoders.base import LoadOptions
    from medprobe.encoders.registry import load_encoder
    from medprobe.images.window import parse_window

    options = LoadOptions(weights=weights, exact_decode=preprocess["jpeg_decode"] == "exact")
    encoder = load_encoder(name, options)
    if list(encoder.preprocess.geometry.size) != list(preprocess["size"]):
        encoder = load_encoder(name, replace(options, image_size=preprocess["size"][0]))
    mean, std = tuple(preprocess["mean"]), tuple(preprocess["std"])
    normalization = str(preprocess["normalization"])
    geometry = replace(encoder.preprocess.geometry, window=parse_window(preprocess["window"]))
    encoder.preprocess = replace(encoder.preprocess, geometry=geometry, mean=mean, std=std, normalization=normalization)
    return encoder
