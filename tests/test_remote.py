"""Images and stores in an object store, on a real S3 server, with answers that fail, break off and get lost."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obstore
import pandas as pd
import pytest
from PIL import Image
from remote_helpers import CUT, LOSE, REFUSE, RESET, S3
from typer.testing import CliRunner

import medprobe
from medprobe import remote, store_objects
from medprobe.cli import app
from medprobe.errors import DataError, UsageError
from medprobe.manifest import read_manifest
from medprobe.remote import RemoteError, bucket
from medprobe.storage import Url, located
from medprobe.store import FeatureStore, open_store
from medprobe.testing import FakeEncoder

N, BLOCK = 18, 5  # the last block is partly filled


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        patch.setattr(remote, "_FIRST_WAIT", 0.01)
        remote._client.cache_clear()
        yield server
        remote._client.cache_clear()
    server.close()


@pytest.fixture
def s3(server: S3) -> S3:
    server.faults.clear()
    return server


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "images"
    rng = np.random.default_rng(0)
    for i in range(N):
        path = folder / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        pixels[..., 0] //= 1 + i % 2  # so that the classes can be told apart
        Image.fromarray(pixels).save(path)
    return folder


def encoder(**kwargs) -> FakeEncoder:
    return FakeEncoder(width=8, views=("cls", "mean"), image_size=16, **kwargs)


def run(data, out, *models, **kwargs) -> FeatureStore:
    options = {"workers": 0, "block_rows": BLOCK, "batch_size": 4, **kwargs}
    return open_store(medprobe.embed(data, list(models) or [encoder()], out, **options)[0].path)


@pytest.fixture(scope="module")
def local(images, tmp_path_factory) -> FeatureStore:
    return run(images, tmp_path_factory.mktemp("local"))


def upload(s3: S3, images: Path, url: str) -> str:
    for path in images.rglob("*.png"):
        s3.put(f"{url}/{path.relative_to(images).as_posix()}", path.read_bytes())
    return url


@pytest.fixture
def there(s3, images) -> str:
    """The images in a bucket of their own."""
    return upload(s3, images, s3.bucket() + "/images")


def tree(place) -> dict[str, bytes]:
    """Return all of a store's objects, but what the images' own stamps are in."""
    if isinstance(located(place), Path):
        root = Path(place)
        found = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    else:
        found = {key: bucket(located(place)).get(key) for key, _ in bucket(located(place)).list()}
    return found


def without_stamps(objects: dict[str, bytes]) -> dict[str, bytes]:
    kept = {key: data for key, data in objects.items() if not key.startswith("sources/stamp/c/")}
    for key in kept:
        if key.startswith("commits/") and key != "commits/zarr.json":
            record = json.loads(kept[key])
            del record["chunks"]["sources/stamp"]["sha256"]
            kept[key] = json.dumps(record, sort_keys=True).encode()
    return kept


def test_a_store_in_a_bucket_is_byte_for_byte_the_local_one(s3, images, local, tmp_path):
    out = s3.bucket() + "/stores"
    assert tree(run(images, out).path) == tree(local.path)
    assert list(open_store(f"{out}/fake--tiny.zarr").verify()) == []


def test_images_and_store_both_in_a_bucket(s3, there, local):
    store = run(there, s3.bucket())
    assert without_stamps(tree(store.path)) == without_stamps(tree(local.path))
    s3.faults.clear()
    assert medprobe.embed(there, [encoder()], store.path.parent, workers=0)[0].embedded == 0
    assert s3.faults.count("PUT|POST|DELETE") == 0
    assert s3.faults.count("GET|HEAD", r"/images/.*\.png") == 0  # the listing has told that none has changed


def test_worker_processes_download_for_themselves(s3, there, local, tmp_path):
    store = run(there, tmp_path, workers=2)
    np.testing.assert_array_equal(store.features(), local.features())


def test_a_table_of_urls_and_one_below_a_root(s3, images, there, local, tmp_path):
    names = list(local.manifest["id"])
    labels = list(local.manifest["label"])
    table = pd.DataFrame({"path": names, "label": labels})
    table.to_csv(tmp_path / "relative.csv", index=False)
    table.assign(path=[f"{there}/{name}" for name in names]).to_csv(tmp_path / "urls.csv", index=False)
    s3.put(f"{there}/table.csv", (tmp_path / "relative.csv").read_bytes())
    table.to_parquet(tmp_path / "t.parquet")
    s3.put(f"{there}/table.parquet", (tmp_path / "t.parquet").read_bytes())
    mixed = [f"{there}/{name}" if i % 2 else str(images / name) for i, name in enumerate(names)]
    table.assign(path=mixed, id=names).to_csv(tmp_path / "mixed.csv", index=False)
    stores = [
        run(tmp_path / "mixed.csv", tmp_path / "0"),
        run(tmp_path / "relative.csv", tmp_path / "1", root=there),
        run(tmp_path / "urls.csv", tmp_path / "2"),
        run(f"{there}/table.csv", tmp_path / "3"),
        run(f"{there}/table.parquet", tmp_path / "4"),
        run(f"{there}/table.csv", tmp_path / "5", root=images),
    ]
    for store in stores:
        np.testing.assert_array_equal(store.features(), local.features())
        assert list(store.samples["label"]) == labels
    for table, out in (("mixed.csv", "0"), ("urls.csv", "2")):
        assert medprobe.embed(tmp_path / table, [encoder()], tmp_path / out, workers=0)[0].embedded == 0


def test_masks_and_frames_are_downloaded_too(s3, images, there, tmp_path):
    mask = np.zeros((16, 20), np.uint8)
    mask[2:9, 3:11] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    s3.put(f"{there}/m.png", (tmp_path / "m.png").read_bytes())
    (tmp_path / "t.csv").write_text("path,mask\na/00.png,m.png\nb/01.png,none.png\n")
    s3.faults.add(RESET, "GET", r"/m\.png")
    store = run(tmp_path / "t.csv", tmp_path / "out", root=there, mask_col="mask", max_failures=1)
    assert store.appearance()[0][:2].tolist() == [7, 8]
    assert store.failures["reason"].tolist() == ["mask: missing"]


@pytest.mark.parametrize(("what", "method"), [(REFUSE, ".*"), (RESET, ".*"), (LOSE, "PUT|POST|DELETE"), (CUT, "GET")])
def test_requests_that_fail_are_made_again(s3, there, local, what, method):
    faults = [
        s3.faults.add(what, method, path, times=3) for path in ("/images/a", "cls/c/", "commits", "zarr.json", "")
    ]
    store = run(there, s3.bucket())
    list(store.verify())
    store.features()
    assert all(fault.times == 0 for fault in faults if not (what == LOSE and fault.path == "/images/a"))
    assert without_stamps(tree(store.path)) == without_stamps(tree(local.path))


def test_a_lost_answer_to_the_first_object_of_a_store_is_no_rival(s3, images, local):
    lost = s3.faults.add(LOSE, "PUT", r"tiny\.zarr/zarr\.json$")
    assert tree(run(images, s3.bucket()).path) == tree(local.path)
    assert lost.times == 0


def test_a_server_that_stays_away_is_named_with_what_to_do(s3, images, monkeypatch):
    out = s3.bucket()
    monkeypatch.setattr(remote, "_LONGEST_WAIT", 0.01)
    away = s3.faults.add(REFUSE, "PUT", "commits/2", times=1000)
    with pytest.raises(
        DataError, match=r"commits/2\.json: could not be written in 10 tries: .*503 SlowDown.*same command"
    ):
        run(images, out)
    assert 1000 - away.times == remote.TRIES
    assert 2 not in open_store(f"{out}/fake--tiny.zarr", partial=True).commits
    s3.faults.clear()
    assert list(run(images, out).verify()) == []


def test_without_trying_again_one_refusal_is_the_end(s3, images, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 1)
    s3.faults.add(REFUSE, "PUT", "commits/2")
    with pytest.raises(DataError, match="1 tries"):
        run(images, s3.bucket())


KILLED = """
import sys, medprobe
from medprobe.testing import FakeEncoder
medprobe.embed(sys.argv[1], [FakeEncoder(width=8, views=("cls", "mean"), image_size=16, delay=0.1)], sys.argv[2],
               workers=0, block_rows=5, batch_size=4)
"""


def test_killed_and_run_again_it_is_byte_for_byte_the_same(s3, images, local):
    out = s3.bucket()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(images), out])
    deadline = time.monotonic() + 120
    while not s3.faults.count("PUT", r"features/cls/c/2/0"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = open_store(f"{out}/fake--tiny.zarr", partial=True)
    assert {0, 1} <= set(left.commits)
    assert left.missing_blocks
    with pytest.raises(DataError, match="run the same embed command again"):
        open_store(left.path).features()
    np.testing.assert_array_equal(left.features()[: 2 * BLOCK], local.features()[: 2 * BLOCK])
    s3.faults.clear()
    assert tree(run(images, out).path) == tree(local.path)
    assert s3.faults.count("PUT", "/c/[01]/0") == 0  # what was committed is not written again


def test_a_creation_that_was_killed_is_finished_by_the_next_run(s3, images, local):
    out = s3.bucket()
    run(images, out)
    url = f"{out}/fake--tiny.zarr"
    for key, _ in list(bucket(Url(url)).list()):
        if "/c/" in key or key.startswith("commits") or key in {"features/mean/zarr.json", "samples/zarr.json"}:
            s3.delete(f"{url}/{key}")
    with pytest.raises(DataError, match="blocks are still to be made"):
        open_store(url).features()
    assert tree(run(images, out).path) == tree(local.path)


def damaged(data: bytes) -> bytes:
    return bytes([*data[: len(data) // 2], data[len(data) // 2] ^ 4, *data[len(data) // 2 + 1 :]])


def test_damage_is_found_and_mended(s3, images, local):
    out = s3.bucket()
    url = f"{out}/fake--tiny.zarr"
    run(images, out)
    there = bucket(Url(url))
    flipped = {"features/cls/c/0/0": "block 0: features/cls: chunk file has changed (SHA-256 differs)"}
    torn = {"features/mean/c/1/0": "block 1: features/mean: chunk file has 83 bytes instead of 84"}
    emptied = {"commits/2.json": "block 2: not complete (no valid commit record)"}
    missing = {"sources/digest/c/3/0": "block 3: sources/digest: chunk file is missing"}
    for key in flipped:
        s3.put(f"{url}/{key}", damaged(there.get(key)))
    for key in torn:
        s3.put(f"{url}/{key}", there.get(key)[:-1])
    for key in emptied:
        s3.put(f"{url}/{key}", b"")
    for key in missing:
        s3.delete(f"{url}/{key}")
    assert list(open_store(url).verify()) == [*flipped.values(), *torn.values(), *emptied.values(), *missing.values()]
    assert set(open_store(url, partial=True).commits) == {0}  # by the sizes of its objects
    with pytest.raises(DataError, match="features/cls is damaged"):
        open_store(url, partial=True).features("cls")
    assert tree(run(images, out).path) == tree(local.path)


def rewrite(store: FeatureStore, index: int, shift: float) -> None:
    arrays = {name: store._array(name, store.plan.block(index)) for name in store.array_names}
    arrays["features/cls"] = arrays["features/cls"] + np.float16(shift)
    store_objects.write_block(store.path, store.plan, index, arrays, (), {"device": str(shift)})


def race(s3: S3, images: Path) -> list[str]:
    """Return what verify finds after several writers of one block, each with other bytes, have been at it together."""
    store = run(images, s3.bucket())
    threads = [threading.Thread(target=rewrite, args=(store, 1, shift)) for shift in (1.0, 2.0, 4.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(open_store(store.path).verify())


def test_two_writers_of_one_block_leave_one_of_the_two(s3, images, monkeypatch):
    """The second comes between the first one's chunks and its record."""
    store = run(images, s3.bucket())
    put, begun = remote.Bucket.put, []

    def interrupted(self, key, data):
        if key == "commits/1.json" and not begun:
            begun.append(key)
            rewrite(store, 1, 2.0)
        return put(self, key, data)

    monkeypatch.setattr(remote.Bucket, "put", interrupted)
    rewrite(store, 1, 1.0)
    assert list(open_store(store.path).verify()) == []
    begun.clear()
    monkeypatch.setattr(store_objects, "_tags", lambda there, tags: tags)  # without a second look
    rewrite(store, 1, 1.0)
    assert list(open_store(store.path).verify()) != []


def test_writers_at_once_leave_a_whole_block(s3, images):
    assert race(s3, images) == []


def test_two_runs_at_once_make_one_store(s3, images, local):
    out, errors = s3.bucket(), []

    def embed() -> None:
        try:
            run(images, out, encoder(delay=0.05))
        except BaseException as error:
            errors.append(error)

    both = [threading.Thread(target=embed) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert errors == []
    assert tree(f"{out}/fake--tiny.zarr") == tree(local.path)


def test_another_plan_does_not_touch_a_store_that_is_there(s3, images):
    out = s3.bucket()
    before = tree(run(images, out).path)
    with pytest.raises(DataError, match="weights_sha256"):
        run(images, out, encoder(seed=1))
    assert tree(f"{out}/fake--tiny.zarr") == before
    assert run(images, out, encoder(seed=1), overwrite=True).plan.encoder["weights_sha256"]
    assert list(open_store(f"{out}/fake--tiny.zarr").verify()) == []


def test_of_two_plans_at_once_the_first_one_stays(s3, images, local, monkeypatch):
    out = s3.bucket()
    before = tree(run(images, out).path)
    for module in ("job", "run"):  # as if the other had been made since they looked
        monkeypatch.setattr(f"medprobe.embed.{module}.is_store_at", lambda path: False)
    with pytest.raises(DataError, match="weights_sha256"):
        run(images, out, encoder(seed=1))
    assert tree(f"{out}/fake--tiny.zarr") == before
    monkeypatch.setattr(remote.Bucket, "put_new", remote.Bucket.put)  # without the condition
    run(images, out, encoder(seed=1))
    assert tree(f"{out}/fake--tiny.zarr") != before


def test_images_that_cannot_be_had_are_failures_with_a_reason(s3, there, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 2)
    s3.put(f"{there}/a/04.png", b"")
    s3.put(f"{there}/a/06.png", b"no image")
    names = [f"{'ab'[i % 2]}/{i:02d}.png" for i in range(N)]
    (tmp_path / "t.csv").write_text("path\n" + "\n".join([*names, "a/none.png"]))
    s3.faults.add(REFUSE, "GET", "a/08", times=100)
    store = run(tmp_path / "t.csv", tmp_path / "out", root=there)
    assert dict(zip(store.failures["id"], store.failures["reason"], strict=True)) == {
        "a/04.png": "empty file",
        "a/06.png": "not an image",
        "a/08.png": "not downloaded: its server answers 503 SlowDown",
        "a/none.png": "missing",
    }
    s3.faults.clear()  # what did not come the first time is asked for again, what is not there is not
    again = run(tmp_path / "t.csv", tmp_path / "out", root=there)
    assert set(again.failures["id"]) == {"a/04.png", "a/06.png", "a/none.png"}
    assert list(again.verify()) == []


@pytest.mark.parametrize("as_table", [False, True])
@pytest.mark.parametrize("check_digest", [False, True])
def test_changed_images_are_named(s3, there, tmp_path, as_table, check_digest):
    data, options = there, {}
    if as_table:
        data, options = tmp_path / "t.csv", {"root": there}
        data.write_text("path\n" + "\n".join(f"{'ab'[i % 2]}/{i:02d}.png" for i in range(N)))
    run(data, tmp_path / "out", **options)
    s3.put(f"{there}/a/06.png", bucket(Url(there)).get("a/06.png"))  # the same again
    run(data, tmp_path / "out", check_digest=check_digest, **options)
    s3.put(f"{there}/a/06.png", bucket(Url(there)).get("a/08.png"))
    with pytest.raises(DataError, match=r"1 images have changed.*a/06\.png"):
        run(data, tmp_path / "out", check_digest=check_digest, **options)


def test_a_server_that_is_away_says_nothing_of_the_images(s3, there, tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("path\na/00.png\nb/01.png\n")
    run(tmp_path / "t.csv", tmp_path / "out", root=there)
    monkeypatch.setattr(remote, "TRIES", 2)
    s3.faults.add(REFUSE, "HEAD", "00.png", times=100)
    with pytest.raises(RemoteError, match=r"00\.png: could not be read in 2 tries"):
        run(tmp_path / "t.csv", tmp_path / "out", root=there)


def test_relabelling_embeds_nothing_again(s3, there, tmp_path):
    names = [f"{'ab'[i % 2]}/{i:02d}.png" for i in range(N)]
    table, out = tmp_path / "t.csv", s3.bucket()
    table.write_text("path,label,site\n" + "\n".join(f"{n},{n[0]},x" for n in names))
    store = run(table, out, root=there)
    table.write_text("path,label,patient\n" + "\n".join(f"{n},{n[0].upper()},{i // 2}" for i, n in enumerate(names)))
    assert medprobe.embed(table, [encoder()], out, root=there, workers=0)[0].embedded == 0
    again = open_store(store.path)
    assert set(again.samples["label"]) == {"A", "B"}
    assert again.roles["group"] == "patient"
    assert not any("site" in key for key in tree(store.path))
    assert list(again.verify()) == []


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["-q", *map(str, arguments)])
    return result.exit_code, result.output


def test_every_command_takes_a_url(s3, local, images, tmp_path):
    out = s3.bucket()
    run(images, out)
    url = f"{out}/fake--tiny.zarr"
    for words in (["info", "--json"], ["verify"]):
        status, said = command(words[0], url, *words[1:])
        assert status == 0, said
        assert command(words[0], local.path, *words[1:])[1] == said.replace(url, str(local.path))
    question = ["-t", "label", "-p", "ridge", "--where", "id <> 'a/00.png'", "--bootstrap", 20, "--json"]
    remotely, locally = (json.loads(command("probe", place, *question)[1]) for place in (url, local.path))
    assert remotely
    for row, other in zip(remotely, locally, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    assert command("export", url, "-o", tmp_path / "x.npz")[0] == 0
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_array_equal(arrays["view:cls"], local.features("cls"))
    assert command("cka", url, local.path, "--json")[0] == 0


def test_the_command_line_embeds_from_and_to_a_bucket(s3, there):
    out = s3.bucket()
    arguments = ["embed", there, "-m", "baseline/pixels", "-o", f"{out}/stores", "--workers", 0, "--limit", 6]
    status, said = command(*arguments, "--dry-run")
    assert status == 0, said
    assert "6 of 6 images" in said
    assert not bucket(Url(out)).has_any()
    assert command(*arguments)[0] == 0
    assert "was complete" in command(*arguments)[1]
    assert command("verify", f"{out}/stores/baseline--pixels.zarr")[0] == 0
    status, said = command("check", there, "--workers", 0)
    assert status == 0, said
    status, said = command("embed", there, "-m", "baseline/pixels", "-o", "https://example.org/stores", "--workers", 0)
    assert status == 2
    assert "only read from" in said


def test_records_of_blocks_are_asked_for_together(s3, images, monkeypatch):
    store = run(images, s3.bucket())
    most, now, lock = 0, 0, threading.Lock()
    get = remote.Bucket.get

    def slow(self, key):
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        gate.wait(timeout=20)
        with lock:
            now -= 1
        return get(self, key)

    gate = threading.Barrier(store.plan.n_blocks)  # passes only when all have asked
    monkeypatch.setattr(remote.Bucket, "get", lambda self, key: slow(self, key) if "commits" in key else get(self, key))
    assert not open_store(store.path).missing_blocks
    assert most == store.plan.n_blocks


def test_what_a_block_costs_is_what_the_guide_says(s3, images):
    store = run(images, s3.bucket())
    arrays = {name: store._array(name, store.plan.block(0)) for name in store.array_names}
    s3.faults.clear()
    store_objects.write_block(store.path, store.plan, 0, arrays, (), {})
    a = len(arrays)
    asked = {method: s3.faults.count(method) for method in ("PUT", "GET", "HEAD", "POST|DELETE")}
    assert asked == {"PUT": a + 1, "GET": 0, "HEAD": a + 1, "POST|DELETE": 1}


@contextlib.contextmanager
def web(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def test_a_web_server_is_read_from(images, local, tmp_path):
    with web(local.path.parent) as url:
        store = open_store(f"{url}/{local.path.name}")
        np.testing.assert_array_equal(store.features("mean"), local.features("mean"))
        assert list(store.verify()) == []
        with pytest.raises(DataError, match="no feature store there"):
            open_store(f"{url}/none.zarr")
        with pytest.raises(UsageError, match="only read from"):
            bucket(Url(f"{url}/x")).put("a", b"")
    with web(images) as url:
        (tmp_path / "t.csv").write_text("path\n" + "\n".join(f"{url}/{n}?X-Sig=CANARY" for n in local.manifest["id"]))
        found = run(tmp_path / "t.csv", tmp_path / "out")
        np.testing.assert_array_equal(found.features(), local.features())
        assert list(found.samples["id"]) == [f"{url}/{name}" for name in local.manifest["id"]]
    assert not any(b"CANARY" in data for data in tree(found.path).values())


def test_no_secret_is_shown_or_kept(s3, there, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 2)
    store = run(there, s3.bucket())
    assert not any(b"CANARY" in data for data in tree(store.path).values())
    said = []
    for url in ("https://user:CANARY@127.0.0.1:9/x.zarr?sig=CANARY", "http://127.0.0.1:9/t.csv?sig=CANARY"):
        with pytest.raises(DataError) as error:
            open_store(url) if "zarr" in url else read_manifest(url)
        said += [str(error.value), repr(located(url))]
    with pytest.raises(UsageError) as refused:
        located("s3://key:CANARY@bucket/x")
    assert "CANARY" not in "".join([*said, str(refused.value)])
    assert "127.0.0.1:9/x.zarr" in said[0]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/x", "no such kind of URL"),
        ("s3://", "a bucket, container or server is missing"),
        ("s3://no-such-bucket-at-all/x.zarr", "no feature store there"),
    ],
)
def test_wrong_urls_are_named(s3, url, words):
    with pytest.raises((UsageError, DataError), match=words):
        open_store(url)


def test_nothing_below_a_url_and_no_such_bucket(s3, images):
    empty = s3.bucket()
    with pytest.raises(DataError, match="no such file or folder"):
        read_manifest(f"{empty}/images")
    with pytest.raises(DataError, match="there is no such bucket"):
        run(images, "s3://no-such-bucket-at-all")


def test_without_credentials_it_says_what_is_missing(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"s3://never-seen/x\.zarr/zarr\.json: could not be read: no credentials"):
        open_store("s3://never-seen/x.zarr")


def test_memory_and_file_urls(images, local):
    assert tree(run(images, "memory://a/stores").path) == tree(local.path)
    assert located(local.path.as_uri()) == local.path
    np.testing.assert_array_equal(open_store(local.path.as_uri()).features(), local.features())


def test_dicom_files_are_found_and_read(s3, tmp_path):
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    file = Path(get_testdata_file("CT_small.dcm")).read_bytes()
    out = s3.bucket()
    for key, data in (("a/1.dcm", file), ("a/2", file), ("a/3.45", file), ("a/notes", b"x" * 200), ("a/", b"")):
        s3.put(f"{out}/scans/{key}", data)
    manifest = read_manifest(f"{out}/scans", keep_ids=True)
    assert list(manifest.samples["id"]) == ["a/1.dcm", "a/2", "a/3.45"]
    assert set(manifest.samples["patient"]) == {"1CT1"}
    assert any("1 files are no images by their names" in note for note in manifest.notes)
    store = run(manifest, tmp_path)
    assert len(store.samples) == 3


def test_a_long_listing_goes_on_where_it_broke_off(s3, monkeypatch):
    out = Url(s3.bucket())
    monkeypatch.setattr(remote, "_BATCH", 2)
    names = [f"{i}.txt" for i in range(7)]
    for name in names:
        bucket(out).put(name, b"")
    real, starts = obstore.list, []

    def breaks_off(store, prefix, *, offset, chunk_size):
        starts.append(offset)
        pages = real(store, prefix, offset=offset, chunk_size=chunk_size)
        yield next(pages)
        if len(starts) <= 2:
            raise obstore.exceptions.GenericError("HTTP error: error sending request")
        yield from pages

    monkeypatch.setattr(obstore, "list", breaks_off)
    assert [key for key, _ in bucket(out).list()] == names
    assert starts == [None, "1.txt", "3.txt"]


def test_names_of_objects_are_taken_as_they_are(s3, images, tmp_path):
    names = ["a b/ü #1.png", "a b/100%.png", "a b/x+y?.png"]
    there = Url(s3.bucket() + "/odd names")
    for i, name in enumerate(names):
        bucket(there).put(name, sorted(images.rglob("*.png"))[i].read_bytes())
    store = run(str(there), tmp_path)
    assert sorted(store.samples["id"]) == sorted(names)


@pytest.mark.parametrize(
    ("given", "text", "root", "key", "name"),
    [
        ("s3://b/a/x.zarr/", "s3://b/a/x.zarr", "s3://b", "a/x.zarr", "x.zarr"),
        ("gs://b", "gs://b", "gs://b", "", "b"),
        ("https://h/a%20b/c.png?s=1", "https://h/a%20b/c.png", "https://h?s=1", "a b/c.png", "c.png"),
        ("abfss://c@acc.dfs.core.windows.net/x", "abfss://c@acc.dfs.core.windows.net/x", None, "x", "x"),
    ],
)
def test_parts_of_a_url(given, text, root, key, name):
    url = Url(given)
    assert (str(url), url.key, url.name) == (text, key, name)
    assert root is None or url.root == root
    assert (url / "y").parent.key == url.key
    assert (url / "y z").key == f"{key}/y z".lstrip("/")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"medprobe\[remote\]"):
        open_store("s3://never-opened-before-by-anyone/x.zarr")


def test_paths_never_import_it(local):
    code = (
        f"import sys, medprobe.cli; from medprobe.store import open_store; open_store({str(local.path)!r}).features();"
        "print([name for name in sys.modules if name.startswith(('obstore', 'medprobe.remote'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
