"""The table of samples: which images there are, what is known about each, and where its pixels lie."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError
from medprobe.images.sources import ArrayImages, FileImages, ImageSource

PATH_COLUMNS = ("path", "file", "filepath", "file_path", "filename", "file_name", "image", "image_path")
_TABLE_NAMES = {"data", "index", "labels", "manifest", "metadata", "train"}  # which say nothing about the data
GROUP_COLUMNS = ("patient", "patient_id", "patientid", "subject", "subject_id", "group")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

# Columns that name a person. They stay out of a store unless the user lists them (--keep-col).
IDENTIFYING_COLUMNS = frozenset(
    """name patient_name patientname first_name last_name surname mrn medical_record_number ssn social_security_number
    birth_date birthdate date_of_birth dob patientbirthdate address email phone telephone""".split()  # noqa: SIM905
)
_MISSING = ["", "NA", "N/A", "NaN", "nan", "null"]


@dataclass(frozen=True)
class Roles:
    """Which columns of a manifest are labels, which one groups images by patient, which one holds a given split."""

    labels: tuple[str, ...] = ()
    group: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Samples and their images, in a fixed order.

    Attributes:
        samples: One row a sample; column ``id`` (unique strings), then every column that goes into a store.
        images: Where the pixels of row ``i`` are.
        roles: Label, group and split columns.
        notes: What a user should be told about how the data were read.
        name: What the data are called in tables of results: by the folder, or the file unless it has any table's name.

    """

    samples: pd.DataFrame
    images: ImageSource
    roles: Roles
    notes: tuple[str, ...] = field(default=())
    name: str = ""

    def __len__(self) -> int:
        return len(self.samples)

    def head(self, limit: int | None) -> Manifest:
        """Return the first ``limit`` samples."""
        if limit is None or limit >= len(self):
            return self
        return replace(self, samples=self.samples.iloc[:limit].reset_index(drop=True), images=self.images.head(limit))


def read_manifest(
    data: str | os.PathLike[str],
    *,
    path_col: str | None = None,
    label_cols: Sequence[str] = (),
    group_col: str | None = None,
    split_col: str | None = None,
    keep_cols: Sequence[str] = (),
) -> Manifest:
    """Return the manifest of a folder of images, a CSV or Parquet table, or a MedMNIST ``.npz`` file.

    A folder gives ``label`` from its first level of sub-folders (or the second where the first is train/val/test, which
    then gives ``split``). A table needs a column of paths, relative to the table's own folder or absolute. ``group_col`` is
    found by its name (patient, patient_id, subject, ...) unless given; ``"none"`` switches it off.

    Raises:
        DataError: Nothing is there, or a path, id or column is missing, empty or double.
        UsageError: A named column does not exist.

    """
    path = Path(data)
    if path.is_dir():
        manifest = _from_folder(path)
    elif not path.exists():
        raise DataError(f"{path}: no such file or folder")
    elif path.suffix.lower() in {".csv", ".tsv", ".parquet"}:
        manifest = _from_table(path, path_col, group_col, keep_cols)
    elif path.suffix.lower() == ".npz":
        manifest = _from_npz(path)
    else:
        raise DataError(
            f"{path}: DATA is a folder of images, a .csv, .tsv or .parquet table with a path column, or a MedMNIST .npz"
        )
    if not len(manifest):
        raise DataError(f"{path}: no images in it")
    whole = path.resolve()
    name = whole.name if path.is_dir() else whole.parent.name if path.stem in _TABLE_NAMES else path.stem
    return _with_roles(replace(manifest, name=name), label_cols, group_col, split_col)


def _with_roles(
    manifest: Manifest, label_cols: Sequence[str], group_col: str | None, split_col: str | None
) -> Manifest:
    columns = [c for c in manifest.samples.columns if c != "id"]
    for flag, named in (
        ("--label-col", label_cols),
        ("--group-col", [group_col]),
        ("--split-col", [split_col]),
    ):
        for column in named:
            if column is not None and column != "none" and column not in columns:
                raise UsageError(f"{flag} {column}: no such column; there are: {', '.join(columns)}")
    notes = list(manifest.notes)
    group = None if group_col == "none" else group_col
    if group_col is None:
        group = next((c for c in columns if c.lower() in GROUP_COLUMNS), None)
        if group is not None:
            notes.append(
                f"column '{group}' groups the images: no {group} will straddle a split (--group-col none: off)"
            )
    split = None if split_col == "none" else split_col
    if split_col is None and "split" in columns:
        split = "split"
    labels = tuple(label_cols) or tuple(c for c in columns if c == "label" or c.startswith("label_"))
    samples = manifest.samples
    if group is not None:
        samples = samples.assign(**{group: samples[group].map(_as_text).astype(object)})
    return replace(manifest, samples=samples, roles=Roles(labels, group, split), notes=tuple(notes))


def _from_folder(root: Path) -> Manifest:
    from medprobe.images.raster import IMAGE_SUFFIXES

    found: list[str] = []
    left_out: Counter[str] = Counter()
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES:
                found.append((Path(folder) / name).relative_to(root).as_posix())
            else:
                left_out[suffix or "no suffix"] += 1
    found.sort()
    parts = [name.split("/") for name in found]
    columns: dict[str, list[str]] = {"id": found}
    levels = {p[0].lower() for p in parts if len(p) > 1}
    if levels and levels <= SPLIT_NAMES.keys() and all(len(p) > 1 for p in parts):
        columns["split"] = [SPLIT_NAMES[p[0].lower()] for p in parts]
        parts = [p[1:] for p in parts]
    if any(len(p) > 1 for p in parts):
        columns["label"] = [p[0] if len(p) > 1 else "" for p in parts]
    notes = []
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common(5))
        notes.append(f"{sum(left_out.values())} files are no images by their names and were left out ({kinds})")
    samples = pd.DataFrame({name: np.asarray(values, dtype=object) for name, values in columns.items()})
    return Manifest(samples, FileImages([str(root / name) for name in found]), Roles(), tuple(notes))


def _from_table(path: Path, path_col: str | None, group_col: str | None, keep_cols: Sequence[str]) -> Manifest:
    table = _read_table(path)
    by_lower = {str(c).lower(): str(c) for c in reversed(table.columns)}
    if path_col is not None and path_col not in table.columns:
        raise UsageError(
            f"--path-col {path_col}: {path.name} has no such column; there are: {', '.join(table.columns)}"
        )
    where = path_col or next((by_lower[name] for name in PATH_COLUMNS if name in by_lower), None)
    if where is None:
        raise DataError(
            f"{path}: no column of image paths (looked for {', '.join(PATH_COLUMNS)}; "
            f"there are: {', '.join(table.columns)}). Name it with --path-col."
        )
    empty = table.index[table[where].isna()]
    if len(empty):
        raise DataError(f"{path}: column '{where}' is empty in {len(empty)} rows (first: data row {empty[0] + 1})")
    paths = table[where].map(_as_text)
    ids = table["id"].map(_as_text) if "id" in table.columns else paths
    if ids.isna().any():
        raise DataError(f"{path}: column 'id' is empty in {int(ids.isna().sum())} rows")
    double = ids[ids.duplicated()]
    if len(double):
        column = "id" if "id" in table.columns else where
        raise DataError(f"{path}: column '{column}' names {len(double)} samples twice (first: {double.iloc[0]})")
    named = {group_col, *keep_cols}
    identifying = [c for c in table.columns if c.lower() in IDENTIFYING_COLUMNS and c not in named and c != where]
    kept = [c for c in table.columns if c not in {"id", where, *identifying}]
    samples = pd.DataFrame({"id": ids.to_numpy(dtype=object)})
    groups = {group_col, *(c for c in kept if c.lower() in GROUP_COLUMNS)}
    for column in kept:
        # As numbers, patients 1.10 and 1.1 would be one.
        samples[column] = _texts(table[column]) if column in groups else _typed(table[column])
    notes = []
    if identifying:
        notes.append(
            f"left out of the store, as they may name a person: {', '.join(identifying)} (--keep-col NAME keeps one)"
        )
    files = [str(path.parent / p) for p in paths]
    return Manifest(samples, FileImages(files), Roles(), tuple(notes))


def _read_table(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
            table = table.reset_index(drop=table.index.name is None)
        else:
            # Everything as text first: patient 007 must not become patient 7.
            table = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                na_values=_MISSING,
                sep="\t" if path.suffix.lower() == ".tsv" else ",",
            )
    except ImportError as error:
        raise UsageError(
            f"{path}: Parquet needs a package that is not installed: pip install 'medprobe[parquet]'"
        ) from error
    except Exception as error:
        raise DataError(f"{path}: could not be read as a table: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes a surplus first field for row names
        raise DataError(f"{path}: rows have more fields than the header has columns (a separator at their end?)")
    table.columns = [str(c) for c in table.columns]
    double = [c for c, n in Counter(table.columns).items() if n > 1]
    if double:
        raise DataError(f"{path}: column '{double[0]}' is there twice")
    bad = [c for c in table.columns if "/" in c or c in {".", "..", ""}]
    if bad:
        raise DataError(f"{path}: a column may not be called '{bad[0]}'; rename it")
    return table


def _typed(column: pd.Series) -> pd.Series:
    """Return a column as int64, float64 or text; text that would change as a number (007) stays text."""
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return _texts(column)
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        return column.astype("float64") if column.isna().any() else column
    present = column.dropna()
    numbers = pd.to_numeric(present, errors="coerce")
    inexact = present.astype(str).str.match(r"^[+-]?(0\d|\d{16,}$)")
    if not len(present) or numbers.isna().any() or inexact.any():
        return _texts(column)
    if len(present) == len(column) and (numbers == numbers.round()).all() and numbers.abs().max() < 2**53:
        return numbers.astype("int64")
    return pd.to_numeric(column).astype("float64")


def _texts(column: pd.Series) -> pd.Series:
    """Return a column as text, empty where a value is missing."""
    return column.map(_as_text, na_action="ignore").astype(object).where(column.notna(), "")


def _as_text(value: object) -> str | float:
    """Return a value as text, a whole float without its ``.0`` and a missing value as it is."""
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return float("nan")
        return str(int(value)) if float(value).is_integer() else str(value)
    return value if isinstance(value, str) else str(value)


def _from_npz(path: Path) -> Manifest:
    images = ArrayImages.open(path)
    samples: dict[str, list[np.ndarray]] = {"id": [], "split": []}
    labels: list[np.ndarray] = []
    for prefix, count in images.members:
        split = SPLIT_NAMES.get(prefix, prefix)
        samples["id"].append(np.array([f"{prefix or 'image'}_{i:06d}" for i in range(count)], dtype=object))
        samples["split"].append(np.full(count, split, dtype=object))
        values = images.labels(prefix)
        if values is not None:
            if len(values) != count:
                raise DataError(f"{path}: {prefix}_labels has {len(values)} rows for {count} images")
            labels.append(values.reshape(count, math.prod(values.shape[1:])))
    columns = {name: np.concatenate(parts) for name, parts in samples.items()}
    if all(prefix == "" for prefix, _ in images.members):
        del columns["split"]
    if labels:
        if len(labels) != len(images.members) or len({part.shape[1] for part in labels}) != 1:
            raise DataError(f"{path}: labels are missing for a split, or differ in width between splits")
        stacked = np.concatenate(labels)
        names = ["label"] if stacked.shape[1] == 1 else [f"label_{i}" for i in range(stacked.shape[1])]
        columns |= {name: stacked[:, i] for i, name in enumerate(names)}
    return Manifest(pd.DataFrame(columns), images, Roles())
