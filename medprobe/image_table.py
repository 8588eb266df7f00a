"""A table of images as a manifest: which column holds the paths, which the patients, and what is cut out of each image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError
from medprobe.images.sources import Box, FileImages
from medprobe.manifest import GROUP_COLUMNS, Manifest, Roles
from medprobe.storage import Place, below, shown
from medprobe.tables import IDENTIFYING_COLUMNS, as_text, leaves_folder, read_table, texts, typed

PATH_COLUMNS = ("path", "file", "filepath", "file_path", "filename", "file_name", "image", "image_path")


def read_image_table(
    path: Place,
    *,
    root: Place,
    path_col: str | None = None,
    group_col: str | None = None,
    keep_cols: Sequence[str] = (),
    box_cols: Sequence[str] = (),
    mask_col: str | None = None,
) -> Manifest:
    """Return the manifest of a table with a column of image paths; its roles are still to be found.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.parquet`` file.
        root: What relative paths are relative to.
        path_col: Column of paths, found by its name unless given.
        group_col: Column of patients, whose values stay text.
        keep_cols: Columns to keep although they look as if they named a person.
        box_cols: Four columns of what is cut out of each image.
        mask_col: Column with a mask for each image.

    Raises:
        DataError: A path, id, box or mask is missing, a path leaves the table's folder, or a sample is there twice.
        UsageError: A named column does not exist.

    """
    table = read_table(path)
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
    paths = table[where].map(as_text)
    for column in (where, mask_col):
        if column not in table.columns:
            continue
        outside = np.flatnonzero(table[column].map(as_text).map(str).map(leaves_folder))
        if len(outside):
            raise DataError(
                f"{path}: column '{column}' leaves the table's folder ('..') in {len(outside)} rows (first: data row "
                f"{outside[0] + 1}); write absolute paths, or put the table above its files"
            )
    boxes, masks = _boxes(path, table, box_cols), _masks(path, root, table, mask_col)
    ids = table["id"].map(as_text) if "id" in table.columns else paths.map(shown)
    if boxes is not None and "id" not in table.columns:
        ids = ids + ["@" + ",".join(map(str, box)) for box in boxes]
    if ids.isna().any():
        raise DataError(f"{path}: column 'id' is empty in {int(ids.isna().sum())} rows")
    double = ids[ids.duplicated()]
    if len(double):
        column = "id" if "id" in table.columns else where
        raise DataError(f"{path}: column '{column}' names {len(double)} samples twice (first: {double.iloc[0]})")
    named = {group_col, *keep_cols}
    identifying = [c for c in table.columns if c.lower() in IDENTIFYING_COLUMNS and c not in named and c != where]
    kept = [c for c in table.columns if c not in {"id", where, mask_col, *identifying}]
    samples = pd.DataFrame({"id": ids.to_numpy(dtype=object)})
    groups = {group_col, *(c for c in kept if c.lower() in GROUP_COLUMNS)}
    for column in kept:
        # As numbers, patients 1.10 and 1.1 would be one.
        samples[column] = texts(table[column]) if column in groups else typed(table[column])
    notes = []
    if identifying:
        notes.append(
            f"left out of the store, as they may name a person: {', '.join(identifying)} (--keep-col NAME keeps one)"
        )
    files = [below(root, p) for p in paths]
    return Manifest(samples, FileImages(files, boxes=boxes, masks=masks), Roles(), tuple(notes))


def _boxes(path: Place, table: pd.DataFrame, columns: Sequence[str]) -> list[Box] | None:
    if not columns:
        return None
    if len(columns) != 4:
        raise UsageError(f"--box-cols {','.join(columns)}: four columns, of left, top, width and height")
    unknown = [c for c in columns if c not in table.columns]
    if unknown:
        raise UsageError(f"--box-cols: {path.name} has no column '{unknown[0]}'; there are: {', '.join(table.columns)}")
    numbers = table[list(columns)].apply(pd.to_numeric, errors="coerce").round()
    empty = np.flatnonzero(numbers.isna().any(axis=1))
    if len(empty):
        raise DataError(f"{path}: no box in {len(empty)} rows (first: data row {empty[0] + 1})")
    return [(int(left), int(top), int(width), int(height)) for left, top, width, height in numbers.to_numpy()]


def _masks(path: Place, root: Place, table: pd.DataFrame, column: str | None) -> list[str] | None:
    if column is None:
        return None
    if column not in table.columns:
        raise UsageError(f"--mask-col {column}: {path.name} has no such column; there are: {', '.join(table.columns)}")
    empty = np.flatnonzero(table[column].isna())
    if len(empty):
        raise DataError(f"{path}: no mask in {len(empty)} rows (first: data row {empty[0] + 1})")
    return [below(root, str(mask)) for mask in table[column]]
