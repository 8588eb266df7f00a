"""Stores survive what happens to them: kills, damage, changed images, labels and weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medprobe
from medprobe.embed import block
from medprobe.embed.run import failure_limit
from medprobe.errors import DataError, UsageError
from medprobe.manifest import read_manifest
from medprobe.store import FeatureStore, open_store
from medprobe.testing import FakeEncoder

N, BLOCK = 30, 7  # the last block is partly filled


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for i in range(N):
        path = folder / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(path)
    return folder


def encoder(**kwargs) -> FakeEncoder:
    return FakeEncoder(width=8, views=("cls", "mean"), image_size=16, **kwargs)


def run(data, out, *models, **kwargs) -> FeatureStore:
    options = {"workers": 0, "block_rows": BLOCK, "batch_size": 4, **kwargs}
    reports = medprobe.embed(data, list(models) or [encoder()], out, **options)
    return open_store(reports[0].path)


def tree(store: FeatureStore) -> dict[str, bytes]:
    return {str(p.relative_to(store.path)): p.read_bytes() for p in sorted(store.path.rglob("*")) if p.is_file()}


def test_a_block_says_whether_its_encoder_was_compiled(images, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.compile", lambda forward: forward)
    plain, compiled = (run(images, tmp_path / name, compile=name == "compiled") for name in ("plain", "compiled"))
    assert {commit.made_with.get("compiled") for commit in plain.commits.values()} == {None}
    assert {commit.made_with.get("compiled") for commit in compiled.commits.values()} == {"torch.compile"}
    np.testing.assert_array_equal(compiled.features(), plain.features())


def test_features_samples_and_failures_stand_side_by_side(images, tmp_path):
    (images / "a" / "02.png").write_bytes(b"")
    store = run(images, tmp_path / "out")
    assert store.failures[["id", "stage", "reason"]].to_numpy().tolist() == [["a/02.png", "read", "empty file"]]
    assert store.features().shape == (N - 1, 8)
    assert list(store.samples["id"]) == [i for i in store.manifest["id"] if i != "a/02.png"]
    assert np.isfinite(store.features("mean")).all()
    single = run(images, tmp_path / "one", batch_size=1)
    np.testing.assert_array_equal(single.features(), store.features())
    assert (store.path.stat().st_mode & 0o777) == 0o700
    assert len(np.unique(store.image_digests(), axis=0)) == N - 1


def test_worker_processes_give_the_same_store(images, tmp_path):
    assert tree(run(images, tmp_path / "a")) == tree(run(images, tmp_path / "b", workers=2))


KILLED = """
import sys, time, medprobe
from medprobe.testing import FakeEncoder
class Slow(FakeEncoder):
    def forward_views(self, pixels):
        time.sleep(0.1)
        with open(sys.argv[3], "a") as log:
            log.write("%d\\n" % len(pixels))
        return super().forward_views(pixels)
medprobe.embed(sys.argv[1], [Slow(width=8, views=("cls", "mean"), image_size=16)], sys.argv[2],
               workers=0, block_rows=7, batch_size=4)
"""


@pytest.mark.parametrize("after", [0, 1, 3])
def test_killed_and_run_again_it_is_byte_for_byte_the_same(images, tmp_path, after):
    reference = run(images, tmp_path / "whole")
    log = tmp_path / "log"
    arguments = [sys.executable, "-c", KILLED, str(images), str(tmp_path / "killed"), str(log)]
    process = subprocess.Popen(arguments)
    commits = tmp_path / "killed" / reference.path.name / "commits"
    deadline = time.monotonic() + 120
    while (
        len(list(commits.glob("[0-9]*.json"))) < after
        or not log.exists()
        or log.read_text().count("\n") < 2 * after + 2
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = 0
    if commits.exists():  # else killed before there was a store
        left = open_store(commits.parent, partial=True)
        assert len(left.missing_blocks) > 0
        with pytest.raises(DataError, match="run the same embed command again"):
            open_store(commits.parent).features()
        done = left.plan.n_blocks - len(left.missing_blocks)
        assert left.features().shape[0] == done * BLOCK
    assert done >= after
    log.unlink()
    subprocess.run(arguments, check=True)
    assert tree(open_store(commits.parent)) == tree(reference)
    again = sum(int(line) for line in log.read_text().split()) if log.exists() else 0
    assert again <= N - done * BLOCK + 4 * 2  # and the few images that a run tries the encoder on, twice


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "bit flip": damage_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("name", ["features/cls", "features/mean", "sources/digest", "sources/stamp", "commit"])
def test_damage_is_found_and_mended(images, tmp_path, kind, block, name):
    store = run(images, tmp_path / "out")
    before = tree(store)
    path = store.commit_path(block) if name == "commit" else store.chunk_path(name, block)
    DAMAGES[kind](path)
    problems = list(open_store(store.path).verify())
    if name == "commit" and kind == "bit flip" and not problems:
        pytest.skip("the flipped bit is in a part of the record that decides nothing")
    assert problems
    assert all(problem.startswith(f"block {block}") for problem in problems)
    assert tree(run(images, tmp_path / "out")) == before


def test_a_flipped_bit_is_never_read(images, tmp_path):
    store = run(images, tmp_path / "out")
    damage_bit(store.chunk_path("features/cls", 2))
    with pytest.raises(DataError, match="medprobe verify"):
        open_store(store.path).features("cls")


def test_a_changed_table_of_samples_is_found(images, tmp_path):
    store = run(images, tmp_path / "out")
    other = run(images, tmp_path / "other").path / "samples" / "label" / "c" / "0"
    assert other.exists()
    attributes = store.path / "samples" / "zarr.json"
    record = json.loads(attributes.read_text())
    record["attributes"]["sha256"] = "0" * 64
    attributes.write_text(json.dumps(record))
    assert any("samples" in problem for problem in open_store(store.path).verify())
    run(images, tmp_path / "out")
    assert list(open_store(store.path).verify()) == []


def test_relabelling_embeds_nothing_again(images, tmp_path):
    table = tmp_path / "images" / "t.csv"
    names = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png"))
    table.write_text("path,label\n" + "\n".join(f"{n},{n[0]}" for n in names))
    store = run(table, tmp_path / "out")
    table.write_text("path,label,patient\n" + "\n".join(f"{n},{n[0].upper()},{i // 2}" for i, n in enumerate(names)))
    report = medprobe.embed(table, [encoder()], tmp_path / "out", workers=0, block_rows=BLOCK)[0]
    again = open_store(store.path)
    assert report.embedded == 0
    assert set(again.samples["label"]) == {"A", "B"}
    assert again.roles["group"] == "patient"
    np.testing.assert_array_equal(again.features(), store.features())


def test_images_are_decoded_once_for_all_encoders(images, tmp_path, monkeypatch):
    import medprobe.images.decode as decoding

    calls = []
    original = decoding.read_rgb
    monkeypatch.setattr(decoding, "read_rgb", lambda *a: calls.append(1) or original(*a))
    medprobe.embed(
        images, [encoder(name="fake/a"), encoder(name="fake/b", seed=1)], tmp_path, workers=0, block_rows=BLOCK
    )
    assert N <= len(calls) <= N + 16  # and the first images once for each encoder, to try it


def test_changed_images_are_named_and_touched_ones_accepted(images, tmp_path):
    store = run(images, tmp_path / "out")
    path = images / "b" / "05.png"
    path.touch()
    assert run(images, tmp_path / "out").plan == store.plan
    Image.new("RGB", (16, 16)).save(path)
    with pytest.raises(DataError, match=r"1 images have changed.*b/05\.png.*--overwrite"):
        run(images, tmp_path / "out")
    assert run(images, tmp_path / "out", overwrite=True).plan == store.plan


def test_a_mended_image_is_embedded_by_the_next_run(images, tmp_path):
    path = images / "a" / "04.png"
    good = path.read_bytes()
    path.write_bytes(b"broken")
    assert len(run(images, tmp_path / "out").failures) == 1
    path.write_bytes(good)
    assert len(run(images, tmp_path / "out").failures) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"seed": 1}}, "weights_sha256"),
        ({"precision": "bf16"}, "precision is bf16, was fp32"),
        ({"dtype": "float32"}, "dtype is float32, was float16"),
        ({"limit": 5}, "25 images of the store are not in the data"),
    ],
)
def test_another_plan_is_refused_with_what_differs(images, tmp_path, changes, words):
    run(images, tmp_path / "out", precision="fp32")
    model = encoder(**changes.pop("model", {}))
    with pytest.raises(DataError, match=words):
        run(images, tmp_path / "out", model, **changes)


def test_overwrite_leaves_alone_what_is_no_store(images, tmp_path):
    path = tmp_path / "out" / "fake--encoder.zarr"
    store = run(images, tmp_path / "x")
    path = tmp_path / "out" / store.path.name
    path.mkdir(parents=True)
    (path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(DataError, match="is no feature store"):
        run(images, tmp_path / "out", overwrite=True)
    assert (path / "thesis.txt").exists()


def test_overwrite_keeps_the_store_until_another_can_be_made(images, tmp_path):
    before = tree(run(images, tmp_path / "out"))
    for path in images.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="can be read"):
        run(images, tmp_path / "out", overwrite=True)
    assert tree(open_store(tmp_path / "out" / "fake--tiny.zarr")) == before


def test_a_commit_record_of_another_plan_counts_for_nothing(images, tmp_path):
    """A folder that was copied over another store's, block by block, is no complete store."""
    store = run(images, tmp_path / "one")
    other = run(images, tmp_path / "two", encoder(seed=1))
    for path in [other.commit_path(1), *(other.chunk_path(name, 1) for name in other.array_names)]:
        (store.path / path.relative_to(other.path)).write_bytes(path.read_bytes())
    assert FeatureStore(store.path, partial=True).missing_blocks == [1]
    with pytest.raises(DataError, match="--partial"):
        open_store(store.path).features()
    assert tree(run(images, tmp_path / "one")) == tree(run(images, tmp_path / "three"))


def test_too_many_failures_stop_the_run(images, tmp_path):
    for path in sorted(images.rglob("*.png"))[:14]:
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"more than the 10 that --max-failures allows: .* not an image"):
        run(images, tmp_path / "out")
    with pytest.raises(DataError, match="more than the 10"):
        run(images, tmp_path / "out")  # what failed in the run before counts
    assert len(run(images, tmp_path / "out", max_failures="50%").failures) == 14
    for path in images.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 30 images can be read"):
        run(images, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_failure_limit():
    values = {(None, 5000): 50, (None, 100): 10, (None, 5): 4, ("0", 100): 0, ("2%", 100): 2, (0.05, 100): 5, (7, 9): 7}
    assert {key: failure_limit(*key) for key in values} == values
    for wrong in ("many", "-1", "nan%"):
        with pytest.raises(UsageError, match="--max-failures"):
            failure_limit(wrong, 10)


def test_out_of_memory_halves_the_batch(images, tmp_path):
    small = encoder(oom_above=2)
    store = run(images, tmp_path / "small", small, batch_size=16)
    assert max(small.batch_sizes) >= 2
    np.testing.assert_array_equal(store.features(), run(images, tmp_path / "plain").features())


def test_a_full_disk_is_one_clear_error_and_nothing_is_lost(images, tmp_path, monkeypatch):
    import medprobe.store_writer as writer

    real, calls = writer._sync, []

    def full(path: Path) -> None:
        calls.append(path)
        if len(calls) == 12:
            raise OSError(28, "No space left on device")
        real(path)

    monkeypatch.setattr(writer, "_sync", full)
    with pytest.raises(DataError, match=r"block .* could not be written: No space left on device"):
        run(images, tmp_path / "out")
    monkeypatch.undo()
    assert tree(run(images, tmp_path / "out")) == tree(run(images, tmp_path / "whole"))


def test_two_processes_may_write_one_store(images, tmp_path):
    arguments = [sys.executable, "-c", KILLED, str(images), str(tmp_path / "out"), str(tmp_path / "log")]
    both = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.wait(timeout=120) for p in both] == [0, 0], [p.stderr.read() for p in both if p.stderr]
    (path,) = (tmp_path / "out").glob("*.zarr")
    assert tree(open_store(path)) == tree(run(images, tmp_path / "whole"))


def test_stores_of_others_are_refused(tmp_path, images):
    with pytest.raises(DataError, match="no feature store there"):
        open_store(tmp_path)
    store = run(images, tmp_path / "out")
    path = store.path / "zarr.json"
    record = json.loads(path.read_text())
    for found, remedy in ((99, "upgrade medprobe"), (1, "embed the images again")):
        record["attributes"]["medprobe"]["format"] = found
        path.write_text(json.dumps(record))
        with pytest.raises(DataError, match=remedy):
            open_store(store.path)


def test_values_too_large_for_float16_are_kept_in_float32(images, tmp_path):
    class Large(FakeEncoder):
        def forward_views(self, pixels):
            return {view: 1e5 * x for view, x in super().forward_views(pixels).items()}

    store = run(images, tmp_path, Large(width=8, views=("cls", "mean"), image_size=16))
    assert set(store.plan.dtypes.values()) == {"float32"}
    assert np.abs(store.features()).max() > 65504
    assert len(store.failures) == 0


def test_features_that_are_not_finite_are_recorded_and_masked(images, tmp_path, monkeypatch):
    """And without the check they would be read as features."""

    class Unchecked:
        def __getattr__(self, name: str) -> object:
            return (lambda values: np.ones(np.shape(values), bool)) if name == "isfinite" else getattr(np, name)

    class Broken(FakeEncoder):
        def forward_views(self, pixels):
            views = super().forward_views(pixels)
            views["mean"][pixels.amax(dim=(1, 2, 3)) == pixels.amin(dim=(1, 2, 3))] = float("nan")
            return views

    Image.new("RGB", (16, 16)).save(images / "b" / "27.png")
    store = run(images, tmp_path, Broken(width=8, views=("cls", "mean"), image_size=16))
    assert store.failures[["id", "stage"]].to_numpy().tolist() == [["b/27.png", "encode"]]
    assert len(store.samples) == N - 1
    assert np.isfinite(store.features("cls")).all()
    assert np.isfinite(store.features("mean")).all()
    monkeypatch.setattr(block, "np", Unchecked())
    unchecked = run(images, tmp_path / "unchecked", Broken(width=8, views=("cls", "mean"), image_size=16))
    assert len(unchecked.failures) == 0
    assert np.isnan(unchecked.features("mean")).any()


def test_a_manifest_object_will_do(images, tmp_path):
    assert len(run(read_manifest(images), tmp_path / "out").samples) == N
