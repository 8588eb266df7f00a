"""A folder of images as a manifest: labels from its sub-folders or a table beside it, and what DICOM headers say."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from medprobe.dicom_tree import DicomTree, read_tree
from medprobe.errors import UsageError
from medprobe.images.raster import IMAGE_SUFFIXES, is_dicom_file
from medprobe.images.sources import NIFTI_SUFFIXES, FileImages, Stamp, is_nifti
from medprobe.labels import join_labels
from medprobe.manifest import SPLIT_NAMES, Manifest, Roles
from medprobe.pseudonyms import own_pseudonyms
from medprobe.series import TAGS, series_slices
from medprobe.storage import Place, Url, below
from medprobe.volumes import BAG, Slicing

_DICOM_SUFFIXES = {".dcm", ".dicom"}


def read_folder(
    root: Place,
    *,
    tags: Sequence[str] = (),
    keep_ids: bool = False,
    labels: Place | None = None,
    labels_key: str | None = None,
    keep_cols: Sequence[str] = (),
    series: Slicing | None = None,
) -> Manifest:
    """Return the manifest of the images below a folder.

    Args:
        root: The folder, or a URL that objects are below. Files are images by their suffix, or because they say that they
            are DICOM.
        tags: DICOM attributes that become columns.
        keep_ids: Keep paths and identifiers of DICOM files, not keyed hashes.
        labels: A table whose columns are joined to the images.
        labels_key: The column to join by.
        keep_cols: Columns of the table to keep although they look as if they named a person.
        series: How DICOM series are cut into slices, which become the rows; None for a row a file.

    Raises:
        DataError: The table of labels does not fit.
        UsageError: A column or attribute does not exist, or a package for DICOM is not installed.

    """
    found, left_out, links, listed = _objects(root) if isinstance(root, Url) else (*_files(root), {})
    of_dicom = np.array([_may_be_dicom(name) for name in found], dtype=bool)
    asked = tags if series is None else (*tags, *TAGS)
    tree = read_tree([below(root, name) for name, said in zip(found, of_dicom, strict=True) if said], asked)
    notes = [f"{links} links to folders were not followed: what they lead to is left out"] if links else []
    if not tree.is_image.all():
        kept = np.ones(len(found), dtype=bool)
        kept[of_dicom] = tree.is_image
        notes.append(f"{(~kept).sum()} DICOM files hold no image (reports, directories) and were left out")
        found, of_dicom, tree = (
            [name for name, keep in zip(found, kept, strict=True) if keep],
            of_dicom[kept],
            tree.images(),
        )
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common(5))
        notes.append(f"{sum(left_out.values())} files are no images by their names and were left out ({kinds})")
    columns = {"id": np.array(found, dtype=object), **_folder_columns(found)}
    if of_dicom.any():
        if "label" in columns and not keep_ids and tree.has_folder_of_one_patient(columns["label"][of_dicom]):
            del columns["label"]
            notes.append(
                "some folders are of one patient: their names are no labels, and were left out (--labels TABLE)"
            )
        said = tree.columns(tags, keep_ids=keep_ids)
        for name in said.columns:
            columns[name] = np.full(len(found), "" if said[name].dtype == object else np.nan, dtype=object)
            columns[name][of_dicom] = said[name].to_numpy()
        if not keep_ids:
            names = own_pseudonyms()
            columns["id"][of_dicom] = [names.of("path", name) for name in columns["id"][of_dicom]]
            notes.append("ids, patients, studies and series of DICOM files are keyed hashes (--keep-ids: as they are)")
    samples = pd.DataFrame(columns).infer_objects()
    if labels is not None:
        joined, said_of_labels = join_labels(_identifiers(found, of_dicom, tree), labels, labels_key, keep_cols)
        samples = samples.drop(columns=[c for c in joined.columns if c in samples.columns]).join(joined)
        notes += said_of_labels
    paths = [below(root, name) for name in found]
    if series is not None and any(map(is_nifti, found)):
        raise UsageError(
            f"--volumes series: {root} holds NIfTI files, which are volumes without it; series lie by themselves"
        )
    if series is None:
        stamps = [listed[name] for name in found] if listed else None
        return Manifest(samples, FileImages(paths, listed=stamps), Roles(), tuple(notes))
    headers = tree.headers.set_axis(np.flatnonzero(of_dicom)).reindex(range(len(found)), fill_value="")
    samples, images, said_of_series = series_slices(samples, paths, headers, series)
    return Manifest(samples, images, Roles(bag=BAG), (*notes, *said_of_series), slicing=str(series))


def _files(root: Path) -> tuple[list[str], Counter[str], int]:
    """Return the images below a folder, relative to it and sorted, how many other files there are by suffix, and links.

    Links to folders are not followed, since they may lead in a circle or out of the data; links to files are.
    """
    found: list[str] = []
    links = 0
    left_out: Counter[str] = Counter()
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        links += sum(Path(folder, name).is_symlink() for name in subfolders)
        for name in names:
            if name.startswith("."):
                continue
            path = Path(folder) / name
            # Many DICOM files have no suffix, or the end of a number for one.
            if _is_image_name(name) or is_dicom_file(path):
                found.append(path.relative_to(root).as_posix())
            else:
                left_out[path.suffix.lower() or "no suffix"] += 1
    return sorted(found), left_out, links


def _objects(root: Url) -> tuple[list[str], Counter[str], int, dict[str, Stamp]]:
    """Return the images below a URL as :func:`_files` those of a folder, and their stamps."""
    from medprobe.images.download import stamp
    from medprobe.remote import bucket

    there = bucket(root)
    entries = {name: entry for name, entry in there.list() if not any(part[:1] == "." for part in name.split("/"))}
    folders = {"", *(parent.as_posix() for name in entries for parent in PurePosixPath(name).parents)}
    for name in folders & entries.keys():  # an empty object that stands for a folder
        del entries[name]
    unsure = [name for name in entries if not _is_image_name(name)]
    said = dict(zip(unsure, there.map(lambda name: is_dicom_file(below(root, name)), unsure), strict=True))
    left_out = Counter(Path(name).suffix.lower() or "no suffix" for name, is_dicom in said.items() if not is_dicom)
    found = sorted(name for name in entries if said.get(name, True))
    return found, left_out, 0, {name: stamp(entries[name]) for name in found}


def _is_image_name(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES or is_nifti(name)


def _may_be_dicom(name: str) -> bool:
    return not is_nifti(name) and Path(name).suffix.lower() not in IMAGE_SUFFIXES - _DICOM_SUFFIXES


def _stem(name: str) -> str:
    file = Path(name).name
    ending = next((suffix for suffix in reversed(NIFTI_SUFFIXES) if file.lower().endswith(suffix)), Path(file).suffix)
    return file[: len(file) - len(ending)]


def _folder_columns(found: Sequence[str]) -> dict[str, np.ndarray]:
    """Return ``split`` where all first folders are called by one, and ``label`` from the first folder after that."""
    parts = [name.split("/") for name in found]
    columns = {}
    levels = {p[0].lower() for p in parts if len(p) > 1}
    if levels and levels <= SPLIT_NAMES.keys() and all(len(p) > 1 for p in parts):
        columns["split"] = np.array([SPLIT_NAMES[p[0].lower()] for p in parts], dtype=object)
        parts = [p[1:] for p in parts]
    if any(len(p) > 1 for p in parts):
        columns["label"] = np.array([p[0] if len(p) > 1 else "" for p in parts], dtype=object)
    return columns


def _identifiers(found: Sequence[str], of_dicom: np.ndarray, tree: DicomTree) -> pd.DataFrame:
    table = pd.DataFrame(
        {"path": found, "file_name": [Path(n).name for n in found], "stem": [_stem(n) for n in found]}, dtype=object
    )
    return table.join(tree.identifiers.set_axis(np.flatnonzero(of_dicom))) if of_dicom.any() else table
