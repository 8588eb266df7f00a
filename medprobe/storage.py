"""Where stores and images are kept: a folder, or the objects below a URL. What an object store needs is imported for a URL."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, unquote, urlsplit

from medprobe.errors import UsageError

T = TypeVar("T")
R = TypeVar("R")

_CLOUDS = ("s3", "gs", "az", "abfs", "abfss")
_HTTP = ("http", "https")
_SCHEMES = (*_CLOUDS, *_HTTP, "memory", "file")
_A_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class Url:
    """The place of an object, or of all objects below it; used like a :class:`~pathlib.Path`.

    Its text has neither credentials nor a signature, so that it may be shown and kept; what was given is in ``given``.

    Args:
        given: Such as ``s3://bucket/images``, ``gs://``, ``az://container/...``, ``https://``.

    Raises:
        UsageError: No such kind of URL, or a bucket is missing.

    """

    def __init__(self, given: str) -> None:
        self.given = given
        scheme = given.partition("://")[0].lower()
        if scheme not in _SCHEMES or scheme == "file":
            raise UsageError(f"{scheme}://: no such kind of URL; there are: {', '.join(_SCHEMES)}")
        if scheme in _HTTP:
            parts = urlsplit(given)
            host = parts.netloc.rpartition("@")[2]
            query = f"?{parts.query}" if parts.query else ""
            self.root, self.key = f"{scheme}://{parts.netloc}{query}", unquote(parts.path).strip("/")
            self._text = f"{scheme}://{host}/{parts.path.strip('/')}"
        else:  # the names of objects are not quoted there
            host, _, key = given.partition("://")[2].partition("/")
            if "@" in host and not scheme.startswith("abfs"):
                raise UsageError(f"{scheme}://: credentials in a URL; set the environment's variables (docs/remote.md)")
            self.root, self.key = f"{scheme}://{host}", key.strip("/")
            self._text = f"{scheme}://{host}/{self.key}".rstrip("/")
        if not host:
            raise UsageError(f"{scheme}://: a bucket, container or server is missing")

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written there, nor listed."""
        return self.root.startswith(_HTTP)

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return PurePosixPath(self.key).name or self.root.partition("://")[2].partition("?")[0]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name's suffix, with its dot."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> Url:
        """What stands before the last slash."""
        return Url(_with_key(self, self.key.rpartition("/")[0]))

    def __truediv__(self, name: str) -> Url:
        return Url(_with_key(self, f"{self.key}/{name}".lstrip("/")))

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Url({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self.given == other.given

    def __hash__(self) -> int:
        return hash(self.given)

    @property
    def server(self) -> Url:
        """The bucket, container or server that it is in."""
        return Url(self.root)

    def resolve(self) -> Url:
        """Return the URL itself."""
        return self

    def exists(self) -> bool:
        """Return whether there is an object of that name, or any below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether there is an object of that name."""
        from medprobe.remote import bucket

        return bool(self.key) and bucket(self.parent).head(PurePosixPath(self.key).name) is not None

    def is_dir(self) -> bool:
        """Return whether there is any object below it."""
        from medprobe.remote import bucket

        return not self.is_read_only and bucket(self).has_any()

    def read_bytes(self) -> bytes:
        """Return the object.

        Raises:
            FileNotFoundError: There is none.
            DataError: Its server does not give it.

        """
        from medprobe.remote import bucket

        return bucket(self.parent).get(PurePosixPath(self.key).name)


Place = Path | Url
AnyPlace = str | os.PathLike[str] | Url  # as a caller may name one


def is_url(text: object) -> bool:
    """Return whether a text is a URL and not the path of a file."""
    return isinstance(text, str) and _A_URL.match(text) is not None


def located(place: AnyPlace) -> Place:
    """Return where something is: a path, also for ``file://``, or a URL.

    Raises:
        UsageError: A URL of an unknown kind.

    """
    if isinstance(place, Url):
        return place
    text = os.fspath(place)
    if not is_url(text):
        return Path(text)
    scheme, _, rest = text.partition("://")
    return Path("/" + unquote(rest).partition("/")[2]) if scheme.lower() == "file" else Url(text)


def below(folder: Place, name: str) -> str:
    """Return the path or URL of what a table names: relative to a folder, absolute, or a URL."""
    if is_url(name):
        place = located(name)
        return place.given if isinstance(place, Url) else str(place)
    if isinstance(folder, Path):
        return str(folder / name)
    if name.startswith("/"):
        raise UsageError(f"{folder}: paths below a URL are relative to it, and one begins with /")
    return (folder / str(PurePosixPath(name))).given


def shown(path: str) -> str:
    """Return a path as it is, or a URL without what lets one read it."""
    return str(located(path)) if is_url(path) else path


def _with_key(url: Url, key: str) -> str:
    if not url.is_read_only:
        return f"{url.root}/{key}"
    root, mark, query = url.root.partition("?")
    return f"{root}/{quote(key)}{mark}{query}"


class Storage(Protocol):
    """The objects of a store, by their keys: paths relative to it."""

    def zarr(self) -> Any:
        """Return what Zarr opens for reading."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object.

        Raises:
            FileNotFoundError: There is none.

        """
        ...

    def sizes(self) -> Callable[[str], int | None]:
        """Return what gives the size of an object in bytes, None for one that is not there."""
        ...

    def map(self, function: Callable[[T], R], items: Iterable[T], at_once: int = ...) -> Iterator[R]:
        """Yield the function of each item, in their order; several at once where that is faster."""
        ...


class Folder:
    """A store in a folder.

    Args:
        path: The folder.

    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def zarr(self) -> Path:
        """Return the folder."""
        return self.path

    def get(self, key: str) -> bytes:
        """Return a file's bytes."""
        return (self.path / key).read_bytes()

    def sizes(self) -> Callable[[str], int | None]:
        """Return what looks at a file's size."""

        def size(key: str) -> int | None:
            try:
                return (self.path / key).stat().st_size
            except OSError:
                return None

        return size

    def map(self, function: Callable[[T], R], items: Iterable[T], at_once: int = 1) -> Iterator[R]:
        """Yield the function of each item, one after the other: a disk gains nothing by threads."""
        return map(function, items)


def storage_at(place: Place) -> Storage:
    """Return what reads the objects of a store."""
    if isinstance(place, Path):
        return Folder(place)
    from medprobe.remote import bucket

    return bucket(place)
