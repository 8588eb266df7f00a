"""docs/store-format.md is enough to read a store: the reader on the page, on stores that are whole, part made and damaged."""

from __future__ import annotations

import ast
import hashlib
import json

import numpy as np
import pytest
import zarr
from docs_helpers import page, programs
from PIL import Image

import medprobe

(READER,) = programs(page("store-format.md"))


@pytest.fixture
def store(tmp_path) -> medprobe.FeatureStore:
    """A store of five blocks, of which the second and the last have a failed row, the last of fewer rows than the others."""
    rng = np.random.default_rng(0)
    for i in range(38):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3)).astype(np.uint8)).save(tmp_path / f"é{i:02d}.png")
    for i in (11, 36):
        (tmp_path / f"é{i:02d}.png").write_bytes(b"no image")
    options = {"workers": 0, "block_rows": 8, "group_col": "none", "precision": "fp32"}
    (report,) = medprobe.embed(tmp_path, "baseline/pixels", tmp_path / "stores", **options)
    return medprobe.open_store(report.path)


def read(store: medprobe.FeatureStore, view: str | None = None):
    namespace: dict = {}
    exec(READER, namespace)
    return namespace["read_store"](str(store.path), view)


def test_the_reader_needs_no_more_than_the_page_says():
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(READER))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported == {"hashlib", "json", "pathlib", "numpy", "zarr"}


@pytest.mark.parametrize("view", [None, "colour"])
def test_it_reads_what_medprobe_reads(store, view):
    assert len(store.commits) == 5
    ids, features, failures = read(store, view)
    assert ids.tolist() == store.samples["id"].tolist()
    np.testing.assert_array_equal(features, store.features(view, dtype=None))
    assert failures == list(store.failures[["id", "stage", "reason"]].itertuples(index=False, name=None))
    assert len(failures) == 2


def test_it_sees_which_rows_are_committed(store):
    """A block without record, with a torn record, with a chunk cut short, of another plan: none of them exists."""
    commits = store.path / "commits"
    (commits / "0.json").unlink()
    (commits / "1.json").write_text((commits / "1.json").read_text()[:50])
    chunk = store.chunk_path("sources/stamp", 2)
    chunk.write_bytes(chunk.read_bytes()[:-1])
    record = json.loads((commits / "3.json").read_text())
    (commits / "3.json").write_text(json.dumps({**record, "plan": "0" * 64}))
    partial = medprobe.open_store(store.path, partial=True)
    assert partial.missing_blocks == [0, 1, 2, 3]
    ids, features, failures = read(store)
    assert ids.tolist() == partial.samples["id"].tolist() == [f"é{i}.png" for i in (32, 33, 34, 35, 37)]
    np.testing.assert_array_equal(features, partial.features(dtype=None))
    assert [name for name, _, _ in failures] == ["é36.png"]


def test_what_else_the_page_says_of_files(store):
    group = zarr.open_group(store.path, mode="r")
    meta = group.attrs["medprobe"]
    assert set(meta) == {"format", "plan", "card", "versions"}
    assert [key for key in meta["plan"] if f"`{key}`" not in page("store-format.md")] == []
    ids = hashlib.sha256(b"".join(str(name).encode() + b"\0" for name in group["samples/id"][:])).hexdigest()
    assert meta["plan"]["manifest_sha256"] == ids
    for name in store.array_names:
        stored = group[name]
        codecs = [codec["name"] for codec in stored.metadata.to_dict()["codecs"]]
        assert (codecs, stored.chunks[0], stored.chunks[1]) == (["bytes", "crc32c"], 8, stored.shape[1])
        if name.startswith("features"):
            assert np.isnan(stored[11]).all()
    for row in (0, 11):
        image = store.path.parents[1] / store.manifest["id"][row]
        digest = hashlib.blake2b(image.read_bytes(), digest_size=16).digest()
        assert group["sources/digest"][row].tobytes() == digest
        assert group["sources/stamp"][row].tolist() == [image.stat().st_size, image.stat().st_mtime_ns]
    assert group["sources/appearance"][0, :2].tolist() == [20, 24]
    assert store.path.stat().st_mode & 0o777 == 0o700
    assert group["samples"].attrs["columns"][0] == "id"
    assert {"labels", "group", "split", "data"} <= set(group["samples"].attrs["roles"])
    for record in (store.path / "commits").glob("[0-9]*.json"):
        assert set(json.loads(record.read_text())) == {"block", "plan", "chunks", "failures", "made_with"}
