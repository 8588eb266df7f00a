"""Adding images to a store: old rows stay, bit for bit, new ones come behind them, and readers see one store or the other."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import medprobe
from medprobe import store_extension
from medprobe.cli import app
from medprobe.embed import job
from medprobe.errors import DataError, UsageError
from medprobe.manifest import read_manifest
from medprobe.store import FeatureStore, open_store
from medprobe.store_extension import drafts_of
from medprobe.store_place import alone
from medprobe.testing import FakeEncoder

OLD, NEW, BLOCK = 17, 9, 5  # two rows in the last block of the old store, three of the new ones beside them


def draw(folder: Path, numbers: range) -> None:
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        name = f"{'b' if i < OLD else 'a'}{i:02d}.png"  # new ones come first in the folder
        Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    draw(folder, range(OLD))
    return folder


def encoder(**options) -> FakeEncoder:
    return FakeEncoder(width=8, views=("cls", "mean"), image_size=16, **options)


def embed(data, out: Path, *models, **options):
    options = {"workers": 0, "block_rows": BLOCK, "batch_size": 2, "device": "cpu", "precision": "fp32", **options}
    return medprobe.embed(data, list(models) or [encoder()], out, **options)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def fresh(images: Path, out: Path, **options) -> FeatureStore:
    """Return a store that was never another, of all images in the order of an extended one."""
    manifest = read_manifest(images)
    rows = np.argsort([name[0] == "a" for name in manifest.samples["id"]], kind="stable")
    return open_store(embed(manifest.in_order(rows), out, **options)[0].path)


@pytest.mark.parametrize("old", [OLD, 3, 15])  # of which the last block is begun, the first alone, or none
def test_only_new_images_are_embedded_and_the_store_is_that_of_a_fresh_start(images, tmp_path, old):
    out = tmp_path / "out"
    (first,) = embed(images, out, limit=old, block_rows=BLOCK)
    features, stats = (
        open_store(first.path).features("mean"),
        {file: file.stat().st_ino for file in first.path.rglob("c/0/0")},
    )
    draw(images, range(OLD, OLD + NEW))
    counted = encoder()
    (report,) = embed(images, out, counted, extend=True)
    assert report.embedded == OLD + NEW - old
    assert sum(counted.batch_sizes) == OLD + NEW - old
    assert report.path == first.path
    store = open_store(report.path)
    assert list(store.verify()) == []
    np.testing.assert_array_equal(store.features("mean")[:old], features)
    assert list(store.manifest["id"][:old]) == sorted(f"b{i:02d}.png" for i in range(old))
    assert [path.name for path in out.iterdir()] == [store.path.name]  # neither a draft nor the old store is left
    if old >= BLOCK:
        assert {file: file.stat().st_ino for file in stats} == stats  # linked, not copied
    if old == OLD:
        assert contents(store.path) == contents(fresh(images, tmp_path / "fresh").path)
    (again,) = embed(images, out)
    assert (again.embedded, again.samples) == (0, OLD + NEW)


def test_without_being_asked_a_store_is_not_extended(images, tmp_path):
    (report,) = embed(images, tmp_path / "out")
    before = contents(report.path)
    draw(images, range(OLD, OLD + NEW))
    with pytest.raises(
        DataError, match=r"9 images are not in the store \(first: a17.png\). --extend embeds them and keeps"
    ):
        embed(images, tmp_path / "out")
    with pytest.raises(DataError, match="weights_sha256"):
        embed(images, tmp_path / "out", encoder(seed=1), extend=True)
    with pytest.raises(UsageError, match="--extend: keeps what --overwrite deletes"):
        embed(images, tmp_path / "out", extend=True, overwrite=True)
    for name in ("b03.png", "b05.png"):
        (images / name).unlink()
    with pytest.raises(DataError, match=r"2 images of the store are not in the data \(first: b03.png, b05.png\)"):
        embed(images, tmp_path / "out", extend=True)
    assert contents(report.path) == before
    assert drafts_of(report.path) == []


def test_an_old_image_that_has_changed_is_noticed(images, tmp_path):
    (report,) = embed(images, tmp_path / "out")
    draw(images, range(OLD, OLD + NEW))
    (images / "b16.png").write_bytes((images / "a20.png").read_bytes())
    with pytest.raises(DataError, match=r"1 images have changed or gone since they were embedded \(first: b16.png\)"):
        embed(images, tmp_path / "out", extend=True)
    assert list(open_store(report.path).verify()) == []


def test_failed_rows_of_a_begun_block_stay_failed_until_mended(images, tmp_path):
    good = (images / "b15.png").read_bytes()
    (images / "b15.png").write_bytes(b"no picture")
    embed(images, tmp_path / "out")
    draw(images, range(OLD, OLD + 2))
    (report,) = embed(images, tmp_path / "out", extend=True)
    assert (report.embedded, report.failures) == (2, 1)
    assert list(open_store(report.path).failures["id"]) == ["b15.png"]
    (images / "b15.png").write_bytes(good)
    draw(images, range(OLD + 2, OLD + NEW))
    (report,) = embed(images, tmp_path / "out", extend=True)
    assert report.failures == 0
    assert contents(report.path) == contents(fresh(images, tmp_path / "fresh").path)


def test_ranks_extend_together_and_the_last_puts_it_in_place(images, tmp_path):
    (first,) = embed(images, tmp_path / "out")
    before = contents(first.path)
    draw(images, range(OLD, OLD + NEW))
    (report,) = embed(images, tmp_path / "out", extend=True, rank=1, world_size=2)
    assert report.missing == 3  # of six blocks
    assert report.path == drafts_of(first.path)[0]
    assert contents(first.path) == before
    (report,) = embed(images, tmp_path / "out", extend=True, rank=0, world_size=2)
    assert (report.missing, report.path) == (0, first.path)
    assert contents(first.path) == contents(fresh(images, tmp_path / "fresh").path)


def test_a_rank_that_comes_when_the_longer_store_is_in_place_does_not_begin_another(images, tmp_path, monkeypatch):
    (first,) = embed(images, tmp_path / "out")
    draw(images, range(OLD, OLD + NEW))
    check, others = job._check_same, []

    def others_are_first(*arguments):
        check(*arguments)
        if not others:  # this rank has seen the short store
            others.append(None)
            embed(images, tmp_path / "out", extend=True)

    monkeypatch.setattr(job, "_check_same", others_are_first)
    counted = encoder()
    (report,) = embed(images, tmp_path / "out", counted, extend=True, rank=1, world_size=2)
    assert (report.embedded, report.missing, report.path) == (0, 0, first.path)
    assert counted.batch_sizes == []
    assert drafts_of(first.path) == []
    assert contents(first.path) == contents(fresh(images, tmp_path / "fresh").path)


def test_a_store_that_cannot_be_read_for_a_moment_is_not_embedded_again(images, tmp_path, monkeypatch):
    embed(images, tmp_path / "out")
    draw(images, range(OLD, OLD + NEW))

    def refused(path, **options):
        raise DataError(f"{path} could not be read: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(store_extension, "FeatureStore", refused)
        with pytest.raises(DataError, match="Input/output error"):
            embed(images, tmp_path / "out", extend=True)
    counted = encoder()
    (report,) = embed(images, tmp_path / "out", counted, extend=True)
    assert sum(counted.batch_sizes) == NEW
    assert contents(report.path) == contents(fresh(images, tmp_path / "fresh").path)


def test_a_folder_that_cannot_be_opened_for_its_lock_is_named(tmp_path):
    pytest.importorskip("fcntl")
    with pytest.raises(DataError, match="absent could not be opened: No such file"), alone(tmp_path / "absent"):
        pytest.fail("the folder is not there")


def test_a_manifest_that_grows_again_goes_on_from_the_draft(images, tmp_path):
    (first,) = embed(images, tmp_path / "out")
    draw(images, range(OLD, OLD + 6))
    embed(
        images, tmp_path / "out", extend=True, rank=0, world_size=2
    )  # blocks 0, 2 and 4; the last begins with its rows
    draw(images, range(OLD + 6, OLD + NEW))
    counted = encoder()
    (report,) = embed(images, tmp_path / "out", counted, extend=True)
    assert sum(counted.batch_sizes) == NEW - 3  # what the draft has of block 4 is kept
    assert contents(report.path) == contents(fresh(images, tmp_path / "fresh").path)
    assert drafts_of(first.path) == []


def test_several_encoders_of_which_one_is_new(images, tmp_path):
    embed(images, tmp_path / "out")
    draw(images, range(OLD, OLD + NEW))
    other = FakeEncoder(width=4, views=("cls",), image_size=16, name="fake/other")
    reports = embed(images, tmp_path / "out", encoder(), other, extend=True)
    stores = [open_store(report.path) for report in reports]
    assert [report.embedded for report in reports] == [NEW, OLD + NEW]
    assert list(stores[0].samples["id"]) == list(stores[1].samples["id"])
    assert contents(stores[0].path) == contents(fresh(images, tmp_path / "fresh").path)


def test_where_there_are_no_links_blocks_are_copied(images, tmp_path, monkeypatch):
    embed(images, tmp_path / "out")
    draw(images, range(OLD, OLD + NEW))

    link = os.link

    def none(source: Path, target: Path) -> None:
        if "c" in Path(target).parts:  # of a chunk; Zarr itself has metadata linked
            raise OSError(18, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", none)
    (report,) = embed(images, tmp_path / "out", extend=True)
    assert contents(report.path) == contents(fresh(images, tmp_path / "fresh").path)


def test_an_incomplete_draft_is_not_put_in_place(images, tmp_path, monkeypatch):
    """Seen through the guard: without a look at what is missing, a part would take the whole store's place."""
    (first,) = embed(images, tmp_path / "out")
    draw(images, range(OLD, OLD + NEW))
    embed(images, tmp_path / "out", extend=True, rank=1, world_size=2)
    assert open_store(first.path).features().shape[0] == OLD
    monkeypatch.setattr(FeatureStore, "missing_blocks", [])
    embed(images, tmp_path / "out", extend=True, rank=1, world_size=2)
    monkeypatch.undo()
    with pytest.raises(DataError, match="still to be made"):
        open_store(first.path).features()


def test_a_dry_run_counts_new_images_and_changes_nothing(images, tmp_path):
    embed(images, tmp_path / "out")
    draw(images, range(OLD, OLD + NEW))
    before = contents(tmp_path / "out")
    (report,) = embed(images, tmp_path / "out", extend=True, dry_run=True)
    assert (report.expected.images, report.samples) == (NEW, OLD + NEW)
    assert contents(tmp_path / "out") == before


def test_the_command_passes_it_on(images, tmp_path):
    arguments = ["embed", str(images), "-m", "baseline/pixels", "-o", str(tmp_path / "out"), "--workers", "0"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    draw(images, range(OLD, OLD + NEW))
    said = CliRunner().invoke(app, [*arguments, "--extend"])
    assert said.exit_code == 0, said.output
    assert f"embedded {NEW} images" in said.stdout


@pytest.mark.parametrize("what", ["zarr.json", "samples/id"])
def test_a_store_that_cannot_be_read_for_a_moment_is_not_taken_for_another(images, tmp_path, monkeypatch, what):
    """Its order would not be known, and the images be said to be others, which --overwrite would embed again."""
    (report,) = embed(images, tmp_path / "out")
    draw(images, range(OLD, OLD + NEW))
    read, failures = io.open, [1]

    def failing(file, *args, **kwargs):
        if Path(str(file)).is_relative_to(report.path / what) and failures:
            failures.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return read(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", failing)
    with pytest.raises(DataError, match=r"fake--tiny\.zarr could not be read: Input/output error"):
        embed(images, tmp_path / "out", extend=True)
    assert not failures
    embed(images, tmp_path / "out", extend=True)
    assert contents(report.path) == contents(fresh(images, tmp_path / "fresh").path)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_no_row_is_encoded_before_the_block_ahead_is_committed(images, tmp_path, monkeypatch, side_by_side):
    """On a processor: rows that are encoded and not committed are never more than a block, so that a kill costs no more."""
    from threading import Event, Lock

    from medprobe.embed import block, pipeline

    went_on = Event()

    counting = Lock()

    class Counting(FakeEncoder):
        reentrant = side_by_side

        def forward_views(self, pixels):
            views = super().forward_views(pixels)
            if len(pixels) > 1:
                with counting:
                    self.encoded = getattr(self, "encoded", 0) + len(pixels)
                    commits = [*(self.out / "fake--tiny.zarr" / "commits").glob("[0-9]*.json")]
                    self.most = max(getattr(self, "most", 0), self.encoded - BLOCK * len(commits))
                    if self.most > BLOCK:
                        went_on.set()
            return views

    def most(out: Path) -> int:
        watched = Counting(width=8, views=("cls", "mean"), image_size=16)
        watched.out = out
        embed(images, out, watched, batch_size=2)
        return watched.most

    assert most(tmp_path / "with") <= BLOCK
    write, encoded = block.write_block, pipeline._encoded
    monkeypatch.setattr(block, "write_block", lambda *a: (went_on.wait(10), write(*a))[1])
    monkeypatch.setattr(pipeline, "_encoded", lambda *a: encoded(*a[:-1], lambda: None))
    assert most(tmp_path / "without") > BLOCK
