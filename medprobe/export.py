"""A store's features in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medprobe.errors import UsageError

if TYPE_CHECKING:
    from medprobe.probe.bags import AnyRows

FORMATS = ("npz", "parquet", "safetensors")


def export(store: AnyRows, path: Path, file_format: str, views: tuple[str, ...] = ()) -> Path:
    """Write ids, columns and features of the samples that have features; return the path.

    ``npz``: ``id``, ``column:<name>`` and ``view:<name>`` arrays, readable without pickle. ``parquet``: the manifest's
    columns, and a column of fixed-size lists for each view. ``safetensors``: ``view:<name>`` tensors, ids and columns as
    JSON in the metadata.

    Args:
        store: What to export; of bags, pooled features.
        path: The file to write.
        file_format: One of ``FORMATS``.
        views: Names of views; all of them by default.

    Raises:
        UsageError: An unknown format or view, or a package that is not installed.

    """
    unknown = [view for view in views if view not in store.views]
    if unknown:
        raise UsageError(f"--view {unknown[0]}: {store.path.name} has {', '.join(store.views)}")
    names = views or tuple(store.views)
    writers = {"npz": _npz, "parquet": _parquet, "safetensors": _safetensors}
    if file_format not in writers:
        raise UsageError(f"--format {file_format}: one of {', '.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writers[file_format](store, path, names)
    except ModuleNotFoundError as error:
        extra = {"pyarrow": "parquet", "safetensors": "embed"}.get(str(error.name), "all")
        raise UsageError(f"--format {file_format} needs {error.name}: pip install 'medprobe[{extra}]'") from error
    return path


def _npz(store: AnyRows, path: Path, views: tuple[str, ...]) -> None:
    samples = store.samples
    arrays: dict[str, np.ndarray] = {"id": samples["id"].to_numpy().astype(str)}
    for column in samples.columns.drop("id"):
        values = samples[column].to_numpy()
        arrays[f"column:{column}"] = values.astype(str) if values.dtype.kind == "O" else values
    arrays |= {f"view:{view}": store.features(view) for view in views}
    with path.open("wb") as file:  # a file object, as numpy would add a suffix to a name
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _parquet(store: AnyRows, path: Path, views: tuple[str, ...]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(store.samples, preserve_index=False)
    for view in views:
        features = store.features(view)
        column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
        table = table.append_column(f"view:{view}", column)
    pq.write_table(table, path)


def _safetensors(store: AnyRows, path: Path, views: tuple[str, ...]) -> None:
    from safetensors.numpy import save_file

    samples = store.samples
    metadata = {f"column:{name}": samples[name].to_json(orient="values") for name in samples.columns}
    metadata["encoder"] = store.encoder
    metadata["fingerprint"] = store.plan.fingerprint
    save_file({f"view:{view}": store.features(view) for view in views}, path, metadata=metadata)
