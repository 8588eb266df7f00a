"""Files of the Hugging Face hub, with a clear word, and no long wait, when one cannot be had.

A repository may change. Where no revision is asked for, the first one that is fetched is noted in medprobe's cache, and
every later call gets that one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from medprobe.encoders.cache import noted_revision, revision_file
from medprobe.errors import UsageError

_TIMEOUT = 10.0  # seconds to wait for the hub's first answer before it counts as out of reach
_FOLDER_FILES = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
)


def hub_file(model: str, repo: str, filename: str, revision: str | None = None, otherwise: str = "") -> Path:
    """Return the path of a file of a hub repository, from the local cache if it is there, else fetched.

    Args:
        model: What the user asked for, for the error message.
        repo: ``owner/name`` on https://huggingface.co.
        filename: The file's path in it.
        revision: A commit, branch or tag; by default the commit that was fetched first.
        otherwise: The file to take where the repository lacks the first one.

    Raises:
        UsageError: The hub is out of reach, the repository is given out on request, or there is no such repository,
            revision or file.

    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    noted, revision = revision is None, revision or noted_revision(repo)
    for name in filter(None, (filename, otherwise)):
        cached = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(cached, str):
            return _note(repo, Path(cached)) if noted else Path(cached)

    def download() -> str:
        try:
            return hf_hub_download(repo, filename, revision=revision)
        except EntryNotFoundError as error:
            if not otherwise or isinstance(error, LocalEntryNotFoundError):
                raise
            return hf_hub_download(repo, otherwise, revision=revision)

    path = _fetched(download, model, repo, filename)
    return _note(repo, path) if noted else path


def hub_folder(model: str, repo: str, revision: str | None = None) -> Path:
    """Return a folder with a repository's configuration and safetensors weights (older: ``pytorch_model.bin``).

    Raises:
        UsageError: As :func:`hub_file`.

    """
    from huggingface_hub import snapshot_download

    patterns = list(_FOLDER_FILES)
    noted, revision = revision is None, revision or noted_revision(repo)
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        if _has_weights(folder):
            return _note(repo, folder) if noted else folder
    except OSError:  # not in the cache
        pass

    def download() -> str:
        return snapshot_download(repo, revision=revision, allow_patterns=patterns)

    folder = _fetched(download, model, repo, "model.safetensors")
    if not _has_weights(folder):
        hub_file(model, repo, "pytorch_model.bin", folder.name)
    return _note(repo, folder) if noted else folder


def _note(repo: str, path: Path) -> Path:
    """Note which commit a path of the hub's cache belongs to, unless one is noted, and return the path."""
    file, parts = revision_file(repo), path.parts
    if "snapshots" in parts[:-1] and not file.exists():
        with suppress(OSError):  # a cache may be shared and read-only
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(parts[parts.index("snapshots") + 1] + "\n", encoding="ascii")
    return path


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors")) or (folder / "pytorch_model.bin").exists()


def _fetched(download: Callable[[], str], model: str, repo: str, filename: str) -> Path:
    """Return what ``download`` returns, or raise the error that tells the user what to do."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    try:
        if not constants.is_offline_mode():
            # The client itself would try again and again for half a minute.
            get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
        return Path(download())
    except GatedRepoError as error:
        raise UsageError(
            f"--model {model}: {repo} is given out on request. Ask for access at {page}, sign in with 'hf auth login' "
            "and try again, or pass the file with --weights"
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(f"--model {model}: {page} has no such revision") from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"--model {model}: there is no repository {page} (if it is private, sign in with 'hf auth login')"
        ) from error
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UsageError(f"--model {model}: {page} has no file {filename}") from error
        raise UsageError(
            f"--model {model}: {filename} of {repo} is not in the local cache and the hub is out of reach "
            f"({type(error).__name__}). Fetch the file from {page} where there is internet and pass it with --weights"
        ) from error
