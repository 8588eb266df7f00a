"""Reading checkpoint files without running anything that they carry, and fetching released ones."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any

import torch

from medprobe.encoders.cache import weights_folder
from medprobe.errors import DataError, UsageError

_TIMEOUT = 10.0  # seconds without an answer
_PIECE = 1 << 20
_SCHEMES = ("https",)

# A pattern of one key, and the family whose checkpoints have such a key; the first that fits is taken.
_SIGNATURES = (
    (r"^image_encoder\.trunk\.", "SAM 2 (family sam2)"),
    (r"(^|\.)neck\.down_\d+\.|^sem_seg_head\.|\.modulation\.f\.|\.spatial_block\.conv1\.fn\.", "SEEM (family seem)"),
    (r"(^|\.)blocks\.\d+\.attn\.rel_pos_h$|^prompt_encoder\.", "SAM (family sam)"),
    (r"^visual_encoder\.|^vision_proj\.", "BLIP (family blip)"),
    (r"^visual\.(transformer|trunk|conv1|layer1)\.|^visual\.(proj|class_embedding)$", "OpenCLIP (family openclip)"),
    (r"(^|\.)(embeddings\.|encoder\.layers?\.\d+\.)", "a Hugging Face model (families hf, dino, dinov2, blip)"),
    (r"(^|\.)(storage_tokens|rope_embed\.periods)$", "DINOv3 (family dinov3)"),
    (r"(^|\.)(mask_token|register_tokens)$", "DINOv2 (family dinov2)"),
    (r"(^|\.)blocks\.\d+\.attn\.qkv\.weight$", "a vision transformer as in timm (families timm, dino, mae)"),
)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint file holds: a safetensors file, or a PyTorch file of tensors and plain containers.

    Raises:
        DataError: The file is missing, is neither format, or carries a pickled object or call. Nothing of it is run.

    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"--weights: {path} is not a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"a pickled {named[1]}" if named else "a pickled object"
        raise DataError(
            f"--weights: {path.name} holds more than tensors ({what}), which is never loaded. "
            "Save its state dict with safetensors, on a machine that trusts it, and pass that file."
        ) from error
    except Exception as error:
        raise DataError(
            f"--weights: {path.name} could not be read as safetensors or a PyTorch file: {error}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise DataError(f"--weights: {path.name} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return dict(loaded)


def state_dict_of(checkpoint: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint whose keys start with ``prefix``, which is cut off.

    The usual wrappers (``state_dict``, ``model``, ``teacher``, ``model_state_dict``) are opened, and ``module.`` is
    dropped.
    """
    for wrapper in ("state_dict", "model", "teacher", "model_state_dict"):
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    tensors = {str(key).removeprefix("module."): v for key, v in checkpoint.items() if isinstance(v, torch.Tensor)}
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def load_strictly(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str, found: Iterable[str] | None = None
) -> None:
    """Load a state dict of which every key must fit, into a network.

    Args:
        module: The network.
        state: Its state.
        what: The model's name, for the error message.
        found: Keys of the file, if ``state`` has others, from which the message says what it looks like.

    Raises:
        DataError: A key is missing or unexpected, or a shape differs; the first few are named.

    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    problems = []
    if missing:
        problems.append(f"{len(missing)} keys are missing (first: {', '.join(missing[:3])})")
    if unexpected:
        problems.append(f"{len(unexpected)} keys are not part of it (first: {', '.join(unexpected[:3])})")
    problems += [f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}" for key in shapes[:3]]
    if problems:
        family = looks_like(state if found is None else found)
        hint = f". Its keys look like those of {family}" if family else ""
        raise DataError(f"--weights: the file does not fit {what}: {'; '.join(problems)}{hint}")
    module.load_state_dict(dict(state))


def looks_like(keys: Iterable[str]) -> str | None:
    """Return what family the keys of a checkpoint look like, in words, or None where none of those known fits."""
    keys = list(keys)
    return next((family for pattern, family in _SIGNATURES if any(re.search(pattern, key) for key in keys)), None)


def fetch(model: str, url: str, sha256: str | None, filename: str) -> Path:
    """Return a released file from the cache, fetched there first if it is missing.

    Where the authors publish no SHA-256, that of the first copy is kept beside the file, and any other is refused.

    Args:
        model: What the user asked for, for the error message.
        url: Address of the file, HTTPS.
        sha256: What the file must have, or None.
        filename: Name in the cache's folder ``weights``.

    Raises:
        UsageError: The address cannot be reached, or the cache cannot be written.
        DataError: The file is not the one that it should be.

    """
    path = weights_folder() / filename
    note = path.with_name(f"{filename}.sha256")
    noted = (note.read_text().strip() or None) if note.is_file() else None
    expected = sha256 or noted
    if path.is_file():
        digest = _file_sha256(path)
        if expected not in (None, digest):
            raise DataError(
                f"{path}: its SHA-256 is {digest[:16]}..., not {expected[:16]}...: delete it, to fetch it again"
            )
    else:
        source = "its authors'" if sha256 else f"the first copy's, in {note}"
        digest = _fetch_to(path, model, url, expected, source)
    if expected is None:
        with contextlib.suppress(OSError):  # a cache may be shared and read-only
            _write(note, [f"{digest}\n".encode()])
    return path


def _fetch_to(path: Path, model: str, url: str, expected: str | None, source: str) -> str:
    """Put the file of an address at ``path`` if its SHA-256 is the expected one, which is returned."""
    try:
        digest = _write(path, _pieces(url), expected)
    except _UnreachableError as error:
        raise UsageError(
            f"--model {model}: its weights are not here and {url} cannot be reached ({error}). "
            f"Fetch that file where there is internet and put it at {path}, or pass it with --weights."
        ) from error
    except OSError as error:
        raise UsageError(
            f"--model {model}: its weights cannot be kept in {path.parent} ({error}). "
            "Set MEDPROBE_CACHE to another folder."
        ) from error
    if expected not in (None, digest):
        raise DataError(
            f"--model {model}: {url} gave a file with SHA-256 {digest[:16]}..., not {expected[:16]}... ({source}); "
            "not kept"
        )
    return digest


def _write(path: Path, pieces: Iterable[bytes], expected: str | None = None) -> str:
    """Write a file under another name, rename it if its SHA-256 is the expected one, and return its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    digest = hashlib.sha256()
    try:
        with draft.open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
        if expected in (None, digest.hexdigest()):
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return digest.hexdigest()


class _UnreachableError(Exception):
    """The network failed, not the disk."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect from HTTPS to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in _SCHEMES:
        raise _UnreachableError(f"{url} is not HTTPS")


def _pieces(url: str) -> Iterator[bytes]:
    """Yield the bytes of an address, or raise once it turns out that they are not all of them."""
    _check_scheme(url)
    opener = urllib.request.build_opener(_Redirects)
    n_bytes = 0
    try:
        with opener.open(url, timeout=_TIMEOUT) as response:
            length = response.headers.get("Content-Length")
            while piece := response.read(_PIECE):
                n_bytes += len(piece)
                yield piece
    except (OSError, HTTPException) as error:
        raise _UnreachableError(str(error) or type(error).__name__) from error
    if length is not None and n_bytes != int(length):
        raise _UnreachableError(f"the connection ended after {n_bytes} of {length} bytes")


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
