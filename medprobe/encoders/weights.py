"""Reading checkpoint files without running anything that they carry."""

from __future__ import annotations

import hashlib
import os
import pickle
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medprobe.errors import DataError, UsageError

_TIMEOUT = 10.0
_PIECE = 1 << 20


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
        raise DataError(
            f"--weights: {path.name} holds more than tensors (a pickled object), which is never loaded. "
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

    The usual wrappers (``state_dict``, ``model``, ``teacher``, ``model_state_dict``) are opened, and ``module.`` is dropped.
    """
    for wrapper in ("state_dict", "model", "teacher", "model_state_dict"):
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    tensors = {str(key).removeprefix("module."): v for key, v in checkpoint.items() if isinstance(v, torch.Tensor)}
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def load_strictly(module: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Load a state dict of which every key must fit, into a network.

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
    for key in shapes[:3]:
        problems.append(f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}")
    if problems:
        raise DataError(f"--weights: the file does not fit {what}: " + "; ".join(problems))
    module.load_state_dict(dict(state))


def cache_folder() -> Path:
    """Return where fetched files are kept: ``MEDPROBE_CACHE``, or ``~/.cache/medprobe``."""
    return Path(os.environ.get("MEDPROBE_CACHE") or Path.home() / ".cache" / "medprobe")


def fetch(model: str, url: str, sha256: str | None, filename: str) -> Path:
    """Return a released file from the cache, fetched there first if it is missing.

    Where the authors publish no SHA-256, the first copy's is kept beside the file, and the file is refused once it
    differs from that.

    Args:
        model: What the user asked for, for the error message.
        url: Address of the file.
        sha256: What the file must have, or None.
        filename: Name in the cache.

    Raises:
        UsageError: The address cannot be reached.
        DataError: The file is not the one that it should be.

    """
    path = cache_folder() / "weights" / filename
    note = path.with_name(f"{filename}.sha256")
    if path.is_file():
        expected = sha256 or (note.read_text().strip() if note.is_file() else None)
        found = _file_sha256(path)
        if expected is not None and found != expected:
            raise DataError(
                f"{path}: its SHA-256 is {found[:16]}..., not {expected[:16]}...: delete it, to fetch it again"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{filename}.{secrets.token_hex(4)}.draft")
    try:
        _download(url, draft)
        found = _file_sha256(draft)
        if sha256 is not None and found != sha256:
            raise DataError(
                f"--model {model}: {url} gave a file with SHA-256 {found[:16]}..., not {sha256[:16]}...; not kept"
            )
        note.write_text(found + "\n")
        draft.replace(path)
    except (OSError, urllib.error.URLError) as error:
        raise UsageError(
            f"--model {model}: its weights are not here and {url} cannot be reached ({error}). "
            f"Fetch that file where there is internet and put it at {path}, or pass it with --weights."
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, path.open("wb") as file:  # noqa: S310
        expected = response.headers.get("Content-Length")
        while piece := response.read(_PIECE):
            file.write(piece)
        if expected is not None and file.tell() != int(expected):
            raise OSError(f"the connection ended after {file.tell()} of {expected} bytes")


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
