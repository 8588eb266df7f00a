"""Where fetched weights are kept, and whether those of an encoder are there. Needs neither torch nor the internet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path


def cache_folder() -> Path:
    """Return where fetched files are kept: ``MEDPROBE_CACHE``, or ``~/.cache/medprobe``."""
    return Path(os.environ.get("MEDPROBE_CACHE") or "~/.cache/medprobe").expanduser()


def weights_folder() -> Path:
    """Return the folder of fetched checkpoint files."""
    return cache_folder() / "weights"


def revision_file(repo: str) -> Path:
    """Return where the commit of a repository of the Hugging Face hub is noted that was fetched first."""
    return cache_folder() / "revisions" / repo.replace("/", "--")


def noted_revision(repo: str) -> str | None:
    """Return the commit of a repository that was fetched first, or None."""
    file = revision_file(repo)
    return (file.read_text(encoding="ascii").strip() or None) if file.is_file() else None


def is_here(source: Mapping[str, str]) -> bool:
    """Return whether weights can be loaded without a network.

    Args:
        source: ``package`` that brings them, ``url`` and ``file``, or ``repo``, ``file`` and perhaps ``revision`` and
            ``otherwise`` (another file of the same weights) of the Hugging Face hub; other keys say nothing.

    """
    if "package" in source:
        return find_spec(source["package"]) is not None
    if "url" in source:
        return (weights_folder() / source["file"]).is_file()
    if "repo" not in source or find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    repo = source["repo"]
    revision = source.get("revision") or noted_revision(repo)
    files = [source[key] for key in ("file", "otherwise") if key in source]
    return any(isinstance(try_to_load_from_cache(repo, file, revision=revision), str) for file in files)
