"""Checkpoint files that run nothing, say what they are when they do not fit, and are fetched whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_helpers import saved

from medprobe.encoders import weights
from medprobe.encoders.cache import cache_folder
from medprobe.encoders.weights import fetch, load_strictly, looks_like, read_checkpoint, state_dict_of
from medprobe.errors import DataError, UsageError

BODY = bytes(range(256)) * (3 << 12)  # three pieces
DIGEST = hashlib.sha256(BODY).hexdigest()
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def write_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def write_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_pickle])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_a_malicious_checkpoint_does_not_run(write: Any, suffix: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / f"evil{suffix}"
    write({"model": {"weight": torch.zeros(2), "extra": Canary(canary)}}, path)
    with pytest.raises(DataError, match=path.name):
        read_checkpoint(path)
    assert not canary.exists()


def test_the_canary_is_alive(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    write_zip({"weight": Canary(canary)}, path)
    with pytest.raises(
        DataError, match=r"evil.pt holds more than tensors \(a pickled posix.mkdir\).*never loaded.*safetensors"
    ):
        read_checkpoint(path)
    torch.load(path, weights_only=False)
    assert canary.exists()


def test_an_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(DataError, match=r"a pickled argparse.Namespace\), which is never loaded. Save its state dict"):
        read_checkpoint(path)


def test_plain_containers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(
        {"model": OrderedDict(STATE), "epoch": 3, "config": {"name": "x", "sizes": [1, (2, 3)], "none": None}}, path
    )
    checkpoint = read_checkpoint(path)
    assert checkpoint["epoch"] == 3
    assert torch.equal(state_dict_of(checkpoint)["weight"], STATE["weight"])


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "teacher", "model_state_dict"])
def test_wrappers_and_prefixes(wrapper: str) -> None:
    checkpoint = {
        wrapper: {"module.backbone.weight": torch.ones(1), "head.weight": torch.ones(1), "epoch": 3},
        "lr": 0.1,
    }
    assert set(state_dict_of(checkpoint)) == {"backbone.weight", "head.weight"}
    assert set(state_dict_of(checkpoint, "backbone.")) == {"weight"}


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing.pt is not a file"):
        read_checkpoint(tmp_path / "missing.pt")
    page = tmp_path / "page.pth"
    page.write_text("<html>Not found</html>")
    with pytest.raises(DataError, match=r"page.pth"):
        read_checkpoint(page)
    whole = Path(saved(STATE, tmp_path / "whole.pth")).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.pth could not be read"):
        read_checkpoint(tmp_path / "cut.pth")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match=r"list.pt holds a list, not a dictionary"):
        read_checkpoint(tmp_path / "list.pt")


def test_load_strictly_names_what_does_not_fit() -> None:
    module = torch.nn.Linear(3, 2)
    load_strictly(module, STATE, "test/linear")
    assert torch.equal(module.weight, STATE["weight"])
    wrong = {"weight": torch.zeros(2, 4), "other": torch.zeros(1)}
    message = (
        r"does not fit test/linear: 1 keys are missing \(first: bias\); 1 keys are not part of it \(first: other\); "
        r"weight is \(2, 4\), expected \(2, 3\)$"
    )
    with pytest.raises(DataError, match=message):
        load_strictly(module, wrong, "test/linear")
    with pytest.raises(DataError, match=r"Its keys look like those of BLIP \(family blip\)$"):
        load_strictly(module, wrong, "test/linear", found=["visual_encoder.cls_token"])
    assert torch.equal(module.weight, STATE["weight"])


SEEM = json.loads((Path(__file__).parent / "data" / "seem_checkpoint_keys.json").read_text())


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["image_encoder.blocks.0.attn.rel_pos_h", "prompt_encoder.pe.x", "mask_decoder.x"], "SAM (family sam)"),
        (["vision_encoder.layers.0.attn.rel_pos_h", "prompt_encoder.x"], "SAM (family sam)"),
        (["image_encoder.trunk.blocks.0.attn.qkv.weight", "sam_mask_decoder.x"], "SAM 2 (family sam2)"),
        *[(list(keys), "SEEM (family seem)") for keys in SEEM.values()],
        *[([key.removeprefix("backbone.") for key in keys], "SEEM (family seem)") for keys in SEEM.values()],
        (["cls_token", "mask_token", "blocks.0.ls1.gamma", "blocks.0.attn.qkv.weight"], "DINOv2 (family dinov2)"),
        (
            ["backbone.cls_token", "backbone.mask_token", "backbone.blocks.0.0.attn.qkv.weight"],
            "DINOv2 (family dinov2)",
        ),
        (["storage_tokens", "mask_token", "blocks.0.attn.qkv.weight"], "DINOv3 (family dinov3)"),
        (["cls_token", "blocks.11.attn.qkv.weight", "head.weight"], "a vision transformer as in timm"),
        (["visual_encoder.blocks.0.attn.qkv.weight", "text_encoder.encoder.layer.0.x"], "BLIP (family blip)"),
        (["visual.transformer.resblocks.0.attn.in_proj_weight", "logit_scale"], "OpenCLIP (family openclip)"),
        (["visual.trunk.blocks.0.attn.qkv.weight", "text.x"], "OpenCLIP (family openclip)"),
        (["embeddings.cls_token", "encoder.layer.0.attention.output.dense.weight"], "a Hugging Face model"),
        (["vision_model.encoder.layers.0.self_attn.k_proj.weight"], "a Hugging Face model"),
    ],
)
def test_what_keys_look_like(keys: list[str], family: str) -> None:
    assert (looks_like(keys) or "").startswith(family)


def test_unknown_keys_look_like_nothing() -> None:
    assert looks_like(["layer1.0.conv1.weight", "fc.bias"]) is None
    assert looks_like([]) is None


class Handler(BaseHTTPRequestHandler):
    """A server of released files, of which some come badly."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        {"/missing": self._missing, "/cut": self._cut, "/chunks": self._cut_chunks, "/away": self._redirect}.get(
            self.path, self._whole
        )()

    def _whole(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(b"!" * len(BODY) if self.path == "/other" else BODY)

    def _missing(self) -> None:
        self.send_error(404)

    def _cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:1000])

    def _cut_chunks(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"1000\r\n" + BODY[:100])

    def _redirect(self) -> None:
        self.send_response(302)
        self.send_header("Location", "ftp://127.0.0.1/file")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def site(server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(weights, "_SCHEMES", ("http",))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.asked = []
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def test_a_file_is_fetched_once(site: str, server: Any, cache: Path) -> None:
    path = fetch("test/a", f"{site}/file", DIGEST, "a.pth")
    assert path == cache / "a.pth"
    assert path.read_bytes() == BODY
    assert fetch("test/a", f"{site}/file", DIGEST, "a.pth") == path
    assert server.asked == ["/file"]
    assert [p.name for p in cache.iterdir()] == ["a.pth"]


def test_a_wrong_file_is_not_kept(site: str, cache: Path) -> None:
    with pytest.raises(DataError, match=rf"test/a: {site}/other gave a file .* not {DIGEST[:16]}.*authors'.*not kept"):
        fetch("test/a", f"{site}/other", DIGEST, "a.pth")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("sha256", [DIGEST, None], ids=["known", "unknown"])
def test_a_cached_file_that_changed_is_refused(site: str, sha256: str | None, cache: Path) -> None:
    path = fetch("test/a", f"{site}/file", sha256, "a.pth")
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(DataError, match=r"a.pth: its SHA-256 is .* delete it, to fetch it again"):
        fetch("test/a", f"{site}/file", sha256, "a.pth")
    path.unlink()
    assert fetch("test/a", f"{site}/file", sha256, "a.pth").read_bytes() == BODY


def test_the_first_copys_digest_is_kept(site: str, cache: Path) -> None:
    path = fetch("test/a", f"{site}/file", None, "a.pth")
    assert (cache / "a.pth.sha256").read_text() == f"{DIGEST}\n"
    path.unlink()
    with pytest.raises(DataError, match=r"gave a file .*the first copy's, in .*a.pth.sha256.*not kept"):
        fetch("test/a", f"{site}/other", None, "a.pth")
    assert not path.exists()


def test_a_file_put_there_by_hand_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    (cache / "a.pth").write_bytes(BODY)
    monkeypatch.setattr(weights, "_write", refuse)
    assert fetch("test/a", "https://127.0.0.1:9/a.pth", None, "a.pth") == cache / "a.pth"
    monkeypatch.undo()
    monkeypatch.setenv("MEDPROBE_CACHE", str(cache.parent))
    fetch("test/a", "https://127.0.0.1:9/a.pth", None, "a.pth")
    assert (cache / "a.pth.sha256").read_text() == f"{DIGEST}\n"


def refuse(*args: Any) -> str:
    raise PermissionError("read-only")


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("cut", f"the connection ended after 1000 of {len(BODY)} bytes"),
        ("chunks", "IncompleteRead"),
        ("missing", "HTTP Error 404"),
        ("away", "ftp://127.0.0.1/file is not HTTPS"),
    ],
    ids=["cut", "chunks", "missing", "away"],
)
def test_a_file_that_does_not_come_whole_is_not_kept(site: str, page: str, reason: str, cache: Path) -> None:
    with pytest.raises(UsageError, match=rf"{site}/{page} cannot be reached \({reason}"):
        fetch("test/a", f"{site}/{page}", None, "a.pth")
    assert list(cache.iterdir()) == []


def test_offline(cache: Path) -> None:
    with pytest.raises(UsageError) as error:
        fetch("sam/vit_b", "https://127.0.0.1:9/sam_vit_b.pth", DIGEST, "sam_vit_b.pth")
    message = str(error.value)
    for part in ("--model sam/vit_b", "https://127.0.0.1:9/sam_vit_b.pth", str(cache / "sam_vit_b.pth"), "--weights"):
        assert part in message
    assert list(cache.iterdir()) == []


def test_only_https(server: Any, cache: Path) -> None:
    with pytest.raises(UsageError, match="is not HTTPS"):
        fetch("test/a", f"http://127.0.0.1:{server.server_address[1]}/file", DIGEST, "a.pth")
    with pytest.raises(UsageError, match="is not HTTPS"):
        fetch("test/a", Path(__file__).as_uri(), None, "a.pth")


def test_a_cache_that_cannot_be_written(site: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UsageError, match=r"cannot be kept in .*cache.* Set MEDPROBE_CACHE"):
        fetch("test/a", f"{site}/file", None, "a.pth")


def test_the_cache_lies_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDPROBE_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "medprobe"
