"""The drills of ``benchmarks/reliability.py`` in short, and every guard seen to matter once it is taken away."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import medprobe
import medprobe.store_writer as writer
from medprobe.errors import DataError
from medprobe.store import FeatureStore, open_store
from medprobe.testing import FakeEncoder

if sys.platform != "linux":
    pytest.skip("the drills look into /proc and limit the size of files", allow_module_level=True)
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import drills as faults


@pytest.fixture(scope="module")
def drills(tmp_path_factory: pytest.TempPathFactory) -> faults.Drills:
    return faults.Drills(tmp_path_factory.mktemp("drills") / "here")


def test_kills_at_random_moments(drills):
    found, again = drills.kills(6)
    assert found == []
    assert max(again) <= 1  # on a processor


def test_kills_of_a_changing_number_of_ranks(drills):
    assert drills.kills(4, (3, 1, 5))[0] == []


def test_every_file_system_call_may_fail(drills):
    found, calls = drills.calls(every=61, first=3)
    assert found == []
    assert calls > 100


def test_damage_of_any_kind_is_found_and_healed(drills):
    assert drills.damage(8) == ([], 8)


def test_a_disk_that_is_full_says_where_and_loses_nothing(drills):
    assert drills.full_disk() == []


def test_three_writers_at_once(drills):
    assert drills.rivals(3) == []


def test_readers_see_committed_rows_only(drills):
    found, partial = drills.readers()
    assert found == []
    assert partial


@pytest.fixture
def store(drills) -> FeatureStore:
    out, log = drills.fresh()
    return open_store(faults.embed(drills.images, out, log))


def test_without_the_sizes_of_the_record_a_missing_chunk_is_read_as_fill_values(drills, store, monkeypatch):
    store.chunk_path("features/cls", 1).unlink()
    assert faults.violations(store.path, drills.reference) == []
    monkeypatch.setattr(FeatureStore, "_fits", lambda self, commit, index: True)
    assert faults.violations(store.path, drills.reference) != []


def test_without_checksums_a_flipped_bit_is_read(drills, monkeypatch):
    def flipped() -> FeatureStore:
        out, log = drills.fresh()
        store = open_store(faults.embed(drills.images, out, log))
        file = store.chunk_path("features/cls", 1)
        data = bytearray(file.read_bytes())
        data[20] ^= 1
        file.write_bytes(data)
        return open_store(store.path)

    with pytest.raises(DataError, match="damaged"):
        flipped().features("cls")
    monkeypatch.setattr(writer, "Crc32cCodec", lambda: writer.ZstdCodec(level=0, checksum=False))
    assert not np.array_equal(flipped().features("cls"), drills.reference.features("cls"))


def test_a_record_that_comes_before_its_chunks_promises_rows_that_are_not_there(drills, monkeypatch):
    """Seen through a rewrite that fails halfway: the old record must be gone by then."""
    real, calls = writer._sync, []

    def fails(path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(path)

    def rewritten_halfway(store: FeatureStore) -> list[int]:
        rows = store.plan.block(1)
        arrays = {name: np.zeros_like(store._array(name, rows)) for name in store.array_names}
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(writer, "_sync", fails)
            with pytest.raises(OSError, match="Input/output"):
                writer.write_block(store, 1, arrays, (), {})
        return FeatureStore(store.path, partial=True).missing_blocks

    def make() -> FeatureStore:
        out, log = drills.fresh()
        return open_store(faults.embed(drills.images, out, log))

    assert rewritten_halfway(make()) == [1]
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **k: None if self.parent.name == "commits" else unlink(self, **k))
    store = make()
    assert rewritten_halfway(store) == []
    assert faults.violations(store.path, drills.reference) != []


def test_a_torn_file_of_the_last_block_is_written_over(drills):
    """That block is shorter than its chunk: what the file held is not read for the rest of it."""
    out, log = drills.fresh()
    store = open_store(faults.embed(drills.images, out, log))
    last = store.plan.n_blocks - 1
    rows = store.plan.block(last)
    assert rows.stop - rows.start < store.plan.block_rows
    arrays = {name: store._array(name, rows) for name in store.array_names}
    for torn in (20, 0):
        file = store.chunk_path("features/cls", last)
        file.write_bytes(file.read_bytes()[:torn])
        writer.write_block(store, last, arrays, (), {})
        assert faults.violations(store.path, drills.reference) == []


def test_without_the_plan_in_the_record_a_block_of_another_encoder_would_count(drills, store, monkeypatch):
    out, _ = drills.fresh()
    (report,) = medprobe.embed(
        drills.images,
        [FakeEncoder(width=8, views=("cls", "mean"), image_size=16, seed=1)],
        out,
        workers=0,
        block_rows=faults.BLOCK,
    )
    other = open_store(report.path)
    for path in [other.commit_path(1), *(other.chunk_path(name, 1) for name in other.array_names)]:
        (store.path / path.relative_to(other.path)).write_bytes(path.read_bytes())
    assert faults.violations(store.path, drills.reference) == []
    monkeypatch.setattr(FeatureStore, "_fits", lambda self, commit, index: True)
    assert faults.violations(store.path, drills.reference) != []


def test_everything_that_a_record_promises_is_on_the_disk_before_it(drills, monkeypatch):
    """After a power cut only what was synced is certain: each chunk file and its folder, before the record is renamed."""

    fsync = os.fsync

    def promised_too_early() -> list[str]:
        synced: set[Path] = set()
        early: list[str] = []
        write_whole = writer._write_whole

        def noted(descriptor: int) -> None:
            synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
            fsync(descriptor)

        def checked(path: Path, data: bytes) -> None:
            store = FeatureStore(path.parents[1], partial=True)
            files = [store.chunk_path(name, int(path.stem)) for name in store.array_names]
            early.extend(str(p) for file in files for p in (file, file.parent) if p not in synced)
            write_whole(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", noted)
            patch.setattr(writer, "_write_whole", checked)
            out, log = drills.fresh()
            faults.embed(drills.images, out, log)
        return early

    assert promised_too_early() == []
    monkeypatch.setattr(writer, "_sync", lambda path: None)
    assert promised_too_early() != []
