"""What a training is gone on with after it was stopped: one file, written whole or not at all, and read without running it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medprobe.errors import DataError

FILE = "checkpoint.pt"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield the name to write a file under; it takes its own name once all of it is on the disk.

    Raises:
        DataError: The disk refuses.

    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise DataError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def digest(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what makes a training that one and no other, as JSON types."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them to the checkpoint of a folder.

    Raises:
        DataError: The disk refuses.

    """
    with whole(folder / FILE) as draft:
        torch.save(dict(state), draft)


def load(folder: Path, training: str) -> dict[str, Any] | None:
    """Return the checkpoint of a folder, or None where there is none.

    Args:
        folder: Of the training.
        training: Digest of the training that it has to be of.

    Raises:
        DataError: It is damaged, holds more than tensors, or is of another training.

    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        of = state["training"]
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged, or no checkpoint: delete it, or start again with --overwrite") from error
    if of != training:
        raise DataError(
            f"{path} is of another training (other data, encoder or settings): take another folder (-o), or --overwrite to "
            "start again"
        )
    return state
