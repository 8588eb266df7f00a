"""What is in a data set, before anything is embedded: what cannot be read, what is there twice, who is on which side."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd

from medprobe.images.decode import Decoder, chunks, default_workers
from medprobe.images.geometry import Geometry
from medprobe.images.window import parse_window
from medprobe.manifest import SPLIT_NAMES, Manifest, Reading, read_manifest
from medprobe.storage import AnyPlace, located, shown

# Attributes of DICOM files that say whether a picture may show a name.
_SAFETY = ("BurnedInAnnotation", "PatientIdentityRemoved")
_COUNTED = ("modality", "manufacturer", "view_position", "laterality", *_SAFETY)
_LISTED = 5  # examples in a line
_MOST_CLASSES = 50  # different values of a label that are counted one by one


@dataclass(frozen=True)
class Survey:
    """What :func:`check` found.

    Attributes:
        data: What was looked at.
        images: Samples of the manifest.
        unreadable: Reason of each image that cannot be used, by its id.
        duplicates: Ids of equal pictures, for each picture that is there several times; of volumes, of those that share any.
        sizes: Images of each height and width, as ``HxW``.
        groups: The column of patients, or empty.
        n_groups: Patients; 0 where no column of them is known.
        labels: Images of each class, by label column; of numbers with many values ``min..max``.
        splits: Images and patients of each side of a given split.
        straddling: Patients on two sides of the split.
        shared: Pictures on two sides of the split, by an id of each.
        described: Images of each modality, maker, view and the like, of DICOM files.
        notes: How the data were read.
        volumes: Of which the images are slices, 0 where they are none.

    """

    data: str
    images: int
    unreadable: dict[str, str]
    duplicates: list[list[str]]
    sizes: dict[str, int]
    groups: str
    n_groups: int
    labels: dict[str, dict[str, int]]
    splits: dict[str, dict[str, int]]
    straddling: list[str]
    shared: list[str]
    described: dict[str, dict[str, int]]
    notes: tuple[str, ...]
    volumes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {**asdict(self), "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """Return it in words, what needs an eye first marked with an exclamation mark."""
        reasons = Counter(self.unreadable.values())
        extra = sum(len(ids) - 1 for ids in self.duplicates)
        what = f"{self.images} slices of {self.volumes} volumes" if self.volumes else f"{self.images} images"
        found = [f"{self.data}: {what}" + (f" of {self.n_groups} ({self.groups})" if self.groups else "")]
        found += [f"  {note}" for note in self.notes]
        if self.unreadable:
            why = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(_LISTED))
            of = f" of {len({name.rpartition('#')[0] for name in self.unreadable})} volumes" if self.volumes else ""
            found.append(f"! {len(self.unreadable)}{of} cannot be used: {why} (first: {next(iter(self.unreadable))})")
        if self.duplicates:
            first = ", ".join(self.duplicates[0][:_LISTED])
            of = "volume" if self.volumes else "image"
            found.append(f"! {extra} are copies of another {of} ({len(self.duplicates)} of them; first: {first})")
        found.append(f"  sizes: {_counts(self.sizes)}")
        found += [f"  {name}: {_counts(classes)}" for name, classes in self.labels.items()]
        for side, counted in self.splits.items():
            found.append(f"  split {side}: {', '.join(f'{count} {what}' for what, count in counted.items())}")
        if self.straddling:
            named = ", ".join(self.straddling[:_LISTED])
            found.append(
                f"! {len(self.straddling)} of {self.groups} are on several sides of the split (first: {named})"
            )
        if self.shared:
            found.append(f"! {len(self.shared)} pictures are on several sides of the split (first: {self.shared[0]})")
        for name, counted in self.described.items():
            mark = "!" if name == "BurnedInAnnotation" and "YES" in counted else " "
            found.append(f"{mark} {name}: {_counts(counted)}")
        if not self.groups:
            found.append(
                "! no column of patients is known: images of one may be on both sides of a split (--group-col)"
            )
        return found


def check(
    data: AnyPlace,
    *,
    window: str = "file",
    workers: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **reading: Unpack[Reading],
) -> Survey:
    """Return what is in a data set; every image is read and decoded, and nothing else is written than ``out``.

    Args:
        data: As for :func:`~medprobe.manifest.read_manifest`.
        window: How grey values of DICOM files are shown.
        workers: Decoding processes, None for one a processor, 0 for none.
        out: CSV to write: id, path, frame, size, digest and reason of every image, which ties ids to files.
        progress: Called with the images done and their number.
        reading: How the data are read, as for :func:`~medprobe.manifest.read_manifest`.

    Raises:
        UsageError: As :func:`~medprobe.manifest.read_manifest`.
        DataError: Likewise.

    """
    reading["tags"] = [*dict.fromkeys([*reading.get("tags", ()), *(_SAFETY if located(data).is_dir() else ())])]
    manifest = read_manifest(data, **reading)
    images = _images(manifest, Geometry((32, 32), (32, 32), window=parse_window(window)), workers, progress)
    if out is not None:
        images.to_csv(out, index=False)
    samples, roles = manifest.samples, manifest.roles
    read = images["reason"] == ""
    ids = samples["id"].astype(str)
    digests = images.loc[images["digest"] != "", "digest"]
    copies = ids[digests.index].groupby(digests).agg(list)
    names = ids if roles.bag is None else samples[roles.bag].astype(str)
    # The slices of a volume that is there twice are all there twice: that is one copy.
    alike = dict.fromkeys(tuple(dict.fromkeys(found)) for found in names[digests.index].groupby(digests).agg(list))
    duplicates = [list(found) for found in alike if len(found) > 1]
    groups = None if roles.group is None else samples[roles.group].astype(str).mask(lambda s: s.isin(["", "nan"]))
    splits: dict[str, dict[str, int]] = {}
    straddling: list[str] = []
    shared: list[str] = []
    if roles.split is not None:
        words = samples[roles.split].astype(str).str.strip().str.lower()
        sides = words.map(SPLIT_NAMES).fillna(words)
        for side in dict.fromkeys(sides):
            here = sides == side
            splits[side or "(empty)"] = {"images": int(here.sum())} | (
                {} if groups is None else {"of " + str(roles.group): int(groups[here].nunique())}
            )
        if groups is not None:
            several = sides.groupby(groups).nunique()
            straddling = [str(name) for name in several.index[several > 1]]
        several = sides[digests.index].groupby(digests).nunique()
        shared = [copies[name][0] for name in several.index[several > 1]]
    sizes = images[read]["height"].astype(str) + "x" + images[read]["width"].astype(str)
    return Survey(
        data=manifest.name,
        images=len(samples),
        unreadable=dict(zip(ids[~read], images["reason"][~read], strict=True)),
        duplicates=duplicates,
        sizes=_counted(sizes),
        groups=roles.group or "",
        n_groups=0 if groups is None else int(groups.nunique() + groups.isna().sum()),
        labels={name: _classes(samples[name]) for name in roles.labels},
        splits=splits,
        straddling=straddling,
        shared=shared,
        described={name: _counted(samples[name]) for name in _COUNTED if name in samples},
        notes=manifest.notes,
        volumes=0 if roles.bag is None else int(samples[roles.bag].nunique()),
    )


def _images(
    manifest: Manifest, geometry: Geometry, workers: int | None, progress: Callable[[int, int], None] | None
) -> pd.DataFrame:
    """Return id, path, frame, height, width, digest and reason of every image, in the manifest's order."""
    n = len(manifest)
    digests: list[str] = []
    sizes = np.zeros((n, 2), dtype=np.int64)
    reasons = np.full(n, "", dtype=object)
    parts = ([manifest.images.payload(row) for row in rows] for rows in chunks(manifest.images, range(n), [geometry]))
    done = 0
    with Decoder(default_workers() if workers is None else workers) as decoder:
        for decoded in decoder.run(parts, [geometry]):
            rows = slice(done, done + len(decoded.readable))
            sizes[rows] = decoded.appearance[0][:, :2]
            reasons[np.arange(done, rows.stop)[~decoded.readable]] = decoded.reasons
            digests += [digest.tobytes().hex() if digest.any() else "" for digest in decoded.digests]
            done = rows.stop
            if progress is not None:
                progress(done, n)
    paths = getattr(manifest.images, "paths", [""] * n)
    frames = getattr(manifest.images, "frames", None) or [None] * n
    return pd.DataFrame(
        {
            "id": manifest.samples["id"],
            "path": [shown(path) for path in paths],
            "frame": pd.array(list(frames), dtype="Int64"),
            "height": sizes[:, 0],
            "width": sizes[:, 1],
            "digest": digests,
            "reason": reasons,
        }
    )


def _classes(column: pd.Series) -> dict[str, int]:
    known = column[column.notna() & (column.astype(str) != "")]
    counted = _counted(known)
    if len(counted) > _MOST_CLASSES and known.dtype.kind in "if":
        counted = {f"{known.min():g}..{known.max():g}": len(known)}
    if len(known) < len(column):
        counted["(missing)"] = len(column) - len(known)
    return counted


def _counted(values: pd.Series) -> dict[str, int]:
    words = values.astype(str).replace({"": "(not said)", "nan": "(not said)"})
    return {str(name): int(count) for name, count in words.value_counts().items()}


def _counts(counted: dict[str, int]) -> str:
    most = sorted(counted.items(), key=lambda item: -item[1])
    rest = sum(count for _, count in most[2 * _LISTED :])
    words = [f"{name} {count}" for name, count in most[: 2 * _LISTED]]
    return ", ".join(words + ([f"{len(most) - 2 * _LISTED} others {rest}"] if rest else [])) or "none"
