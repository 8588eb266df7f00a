"""Objects of S3, Google Cloud Storage, Azure and web servers: each read and written whole, and tried again when that fails."""

from __future__ import annotations

import asyncio
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from zarr.storage import ObjectStore

from medprobe.errors import DataError, UsageError
from medprobe.storage import Url

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 32  # requests in flight
TRIES = 10
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 20.0  # seconds before a second try, and before any
_BATCH = 1000  # objects of an answer to a listing
_SERVERS = 256  # whose connections are kept
# All tries of one request together may take minutes; one that is stuck must not.
_LOCK = threading.Lock()
_TIMEOUTS = {
    "connect_timeout": timedelta(seconds=10),
    "read_timeout": timedelta(seconds=60),
    "timeout": timedelta(minutes=10),
}
_STATUS = re.compile(r"status code: (\d{3})[ ]?([A-Za-z ]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
# What a cloud's own machines are asked for, where the environment holds no credentials.
_ASKING_THE_MACHINE = re.compile(r"latest/api/token|latest/meta-data|computeMetadata|metadata/identity")
# What may be over in a moment: too much asked at once, a conflict with another request, and whatever is the server's fault.
_PASSING = frozenset({408, 409, 425, 429})
_NO_ANSWER = "no answer (it cannot be reached, the connection was lost, or it took too long)"


class RemoteError(DataError):
    """An object that its server does not give or take; ``reason`` is why, without any address."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # from one process to another
        return type(self), (str(self), self.reason)


class RefusedError(RemoteError):
    """An object that this user may not read or write."""


@dataclass(frozen=True)
class Entry:
    """What a server says of an object: its size in bytes, when it was changed, in nanoseconds, and its entity tag."""

    size: int
    time: int
    tag: str

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Entry:
        """Return what is in obstore's description of an object."""
        # Listings give a fraction of a second that answers for one object lack.
        return cls(meta["size"], int(meta["last_modified"].timestamp()) * 10**9, _tag(meta))


class Bucket:
    """The objects below a URL, by the part of their names behind it; safe to use from several threads.

    Every request is repeated, with longer and longer waits, until it is answered or ``TRIES`` are used up. Writing is
    putting an object whole: it is there as it was before, or as it is meant, and putting it twice is as good as once.

    Args:
        url: What the keys are relative to.

    """

    def __init__(self, url: Url) -> None:
        self.url = url
        self._store = _client(url.root)

    def get(self, key: str) -> bytes:
        """Return an object.

        Raises:
            FileNotFoundError: There is none.
            RemoteError: Its server does not give it.

        """
        return self.fetch(key)[0]

    def fetch(self, key: str, limit: int | None = None) -> tuple[bytes, Entry]:
        """Return an object, and what its server says of it; one of more bytes than the limit as nothing.

        Raises:
            FileNotFoundError: There is none.
            RemoteError: Its server does not give it.

        """
        import obstore

        def once() -> tuple[bytes, Entry]:
            answer = obstore.get(self._store, self._name(key))
            entry = Entry.of(answer.meta)
            return (b"" if limit is not None and entry.size > limit else answer.bytes().to_bytes()), entry

        return self._tried("read", key, once)

    def head(self, key: str) -> Entry | None:
        """Return what the server says of an object, None where there is none.

        Raises:
            RemoteError: It says nothing.

        """
        import obstore

        try:
            return Entry.of(self._tried("read", key, lambda: obstore.head(self._store, self._name(key))))
        except FileNotFoundError:
            return None

    def start(self, key: str, length: int) -> bytes:
        """Return an object's first bytes; fewer where it is shorter, none where it is not there.

        Raises:
            RemoteError: Its server does not give them.

        """
        import obstore

        entry = self.head(key)
        if entry is None or not entry.size:
            return b""
        end = min(length, entry.size)
        try:
            return self._tried(
                "read", key, lambda: bytes(obstore.get_range(self._store, self._name(key), start=0, end=end))
            )
        except FileNotFoundError:
            return b""

    def put(self, key: str, data: bytes) -> str:
        """Write an object; return its entity tag.

        Raises:
            RemoteError: Its server does not take it.

        """
        import obstore

        self._check_writable()

        def once() -> str:  # in one request, so that nothing unfinished is left behind
            return _tag(obstore.put(self._store, self._name(key), data, use_multipart=False))

        try:
            return self._tried("written", key, once)
        except FileNotFoundError:
            raise RemoteError(f"{self.url / key}: could not be written: there is no such bucket", "no bucket") from None

    def put_new(self, key: str, data: bytes) -> None:
        """Write an object unless there is one; where the server cannot tell, one that is there may be replaced.

        Whose object is there in the end has to be read: an answer that was lost leaves one's own, and looks like another's.

        Raises:
            RemoteError: Its server does not take it.

        """
        import obstore

        self._check_writable()

        def once() -> None:
            obstore.put(self._store, self._name(key), data, use_multipart=False, mode="create")

        try:
            self._tried("written", key, once)
        except obstore.exceptions.AlreadyExistsError:
            return
        except FileNotFoundError:
            raise RemoteError(f"{self.url / key}: could not be written: there is no such bucket", "no bucket") from None
        except (NotImplementedError, obstore.exceptions.NotSupportedError):
            if self.head(key) is None:
                self.put(key, data)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, whether or not they are there.

        Raises:
            RemoteError: Their server does not.

        """
        import obstore

        self._check_writable()

        def once(key: str) -> None:
            try:
                self._tried("deleted", key, lambda: obstore.delete(self._store, self._name(key)))
            except FileNotFoundError:
                return

        for _ in self.map(once, keys):
            pass

    def list(self, prefix: str = "") -> Iterator[tuple[str, Entry]]:
        """Yield the key of each object below a prefix and what the server says of it, in the order of their names.

        Raises:
            RemoteError: The server does not list them.

        """
        import obstore

        start = f"{self._name(prefix)}/".lstrip("/") or None
        last: str | None = None
        pages: Iterator[Any] | None = None

        def once() -> Any:
            nonlocal pages
            if pages is None:  # at first, and where a listing that failed had come to
                pages = iter(obstore.list(self._store, start, offset=last, chunk_size=_BATCH))
            try:
                return next(pages, ())
            except Exception:
                pages = None
                raise

        while page := self._tried("listed", prefix, once):
            for meta in page:
                yield meta["path"][len(self.url.key) :].lstrip("/"), Entry.of(meta)
            last = page[-1]["path"]

    def has_any(self) -> bool:
        """Return whether there is any object."""
        return next(self.list(), None) is not None

    def sizes(self) -> Callable[[str], int | None]:
        """Return the size of an object: all are listed once, or each is asked for where nothing can be listed."""
        if self.url.is_read_only:
            return lambda key: None if (entry := self.head(key)) is None else entry.size
        return {key: entry.size for key, entry in self.list()}.get

    def map(self, function: Callable[[T], R], items: Iterable[T], at_once: int = AT_ONCE) -> Iterator[R]:
        """Yield the function of each item, in their order, of so many at once."""
        pool = ThreadPoolExecutor(at_once)
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(cancel_futures=True)

    def zarr(self) -> ObjectStore[Any]:
        """Return what Zarr opens for reading."""
        return _Reading(self)

    def _name(self, key: str) -> str:
        return f"{self.url.key}/{key}".strip("/")

    def _check_writable(self) -> None:
        if self.url.is_read_only:
            raise UsageError(f"{self.url}: a web server is only read from; write to s3://, gs:// or az://, or a folder")

    def _tried(self, what: str, key: str, once: Callable[[], T]) -> T:
        """Return what a request gives, tried again as long as it fails for a passing reason."""
        from obstore import exceptions

        for attempt in range(TRIES):
            if attempt:
                wait = min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT)
                time.sleep(random.uniform(wait / 2, wait))  # many that failed together must not come back together
            try:
                return once()
            except (
                FileNotFoundError,
                NotImplementedError,
                exceptions.AlreadyExistsError,
                exceptions.NotSupportedError,
            ):
                raise
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
                raise RefusedError(
                    f"{self.url / key}: could not be {what}: no permission, or no valid credentials in the environment "
                    "(docs/remote.md names the variables)",
                    "no permission",
                ) from None
            except (exceptions.BaseError, ValueError) as error:
                reason, passing = _reason(error)
                if not passing:
                    raise RemoteError(f"{self.url / key}: could not be {what}: {reason}", reason) from None
        raise RemoteError(
            f"{self.url / key}: could not be {what} in {TRIES} tries: {reason}. "
            "Run the same command again when it is back: what is finished is kept.",
            reason,
        )


def bucket(url: Url) -> Bucket:
    """Return the objects below a URL; those of one server share their connections.

    Raises:
        UsageError: The package for it is not installed, or the environment lacks what it needs.

    """
    with _LOCK:  # of several threads that ask for the same one, the first makes it
        return Bucket(url)


@lru_cache(_SERVERS)
def _client(root: str) -> Any:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import HTTPStore, MemoryStore, from_url
    except ModuleNotFoundError as error:
        raise UsageError(f"URLs need {error.name}: pip install 'medprobe[remote]'") from None
    if root.startswith("memory://"):  # of this process: for tests
        return MemoryStore()
    endpoints = (value for name, value in os.environ.items() if "ENDPOINT" in name or name.endswith("EMULATOR_HOST"))
    plain = root.startswith("http://") or any(value.startswith("http://") for value in endpoints)
    options: dict[str, Any] = {"client_options": {**_TIMEOUTS, "allow_http": plain}, "retry_config": {"max_retries": 0}}
    try:
        if root.startswith("http"):
            return HTTPStore.from_url(root, **options)
        return from_url(root, **options)
    except (BaseError, ValueError) as error:
        raise UsageError(f"{Url(root)}: {_reason(error)[0]} (docs/remote.md names the variables to set)") from None


def _reason(error: Exception) -> tuple[str, bool]:
    """Return why a request failed, without any address or token, and whether that may pass."""
    text = str(error).partition("Debug source")[0]
    if _ASKING_THE_MACHINE.search(text):
        return (
            "no credentials, neither in the environment nor of this machine (docs/remote.md names the variables)",
            False,
        )
    status = _STATUS.search(text)
    if status is not None:
        number = int(status[1])
        code = _CODE.search(text)
        said = code[1] if code else status[2].strip()
        return f"its server answers {number} {said}".rstrip(), number >= 500 or number in _PASSING
    if "HTTP error" in text or "error sending request" in text or "body error" in text:
        return _NO_ANSWER, True
    return re.sub(r"\w+://\S+", "...", text.strip().partition("\n")[0])[:200], False


def _tag(meta: Mapping[str, Any]) -> str:
    return str(meta["e_tag"] or "").removeprefix("W/").strip('"')


class _Reading(ObjectStore[Any]):
    """What Zarr reads through: whole objects, with the bucket's own way of trying again."""

    def __init__(self, source: Bucket) -> None:
        super().__init__(source._store, read_only=True)
        self._source = source

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return an object, or None."""
        assert byte_range is None, "chunks are read whole"
        try:
            data = await asyncio.get_running_loop().run_in_executor(_threads(), self._source.get, key)
        except FileNotFoundError:
            return None
        return prototype.buffer.from_bytes(data)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="remote")
