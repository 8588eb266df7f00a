"""Keyed hashes in place of the identifiers of patients, studies and files: the same for one key, of no use without it."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from medprobe.errors import UsageError

VARIABLE = "MEDPROBE_ID_KEY"
_DIGITS = 16  # of 64 bits: two of a million identifiers are alike with a chance of 3e-8


class Pseudonyms:
    """Hashes of identifiers under one secret key (HMAC with SHA-256)."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, kind: str, identifier: str) -> str:
        """Return 16 hexadecimal digits; an empty identifier stays empty. One identifier of two kinds gives two hashes."""
        if not identifier:
            return ""
        return hmac.new(self._key, f"{kind}\0{identifier}".encode(), hashlib.sha256).hexdigest()[:_DIGITS]


def own_pseudonyms() -> Pseudonyms:
    """Return those of the user's own key: ``MEDPROBE_ID_KEY``, or a file in the folder of settings that is made once.

    Raises:
        UsageError: The variable is too short to be a secret, or the file can be neither read nor made.

    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        if len(given) < 16:
            raise UsageError(f"{VARIABLE}: a secret of at least 16 characters")
        return Pseudonyms(given.encode())
    path = key_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        if not path.exists():
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32))
            try:
                os.link(draft, path)  # whichever process comes first has made the key
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return Pseudonyms(path.read_text().strip().encode())
    except OSError as error:
        raise UsageError(f"{path}: the key of the identifiers cannot be read or made; set {VARIABLE}") from error


def key_path() -> Path:
    """Return where the user's key lies, made or not."""
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(settings) / "medprobe" / "id.key"
