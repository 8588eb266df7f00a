"""Images on servers: downloaded whole, several at once, in the process that decodes them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from medprobe.errors import DataError
from medprobe.images.raster import MAX_BYTES, ImageError, UnreachableError, read_source
from medprobe.images.sources import UNKNOWN, Part, Payload, Stamp
from medprobe.remote import Entry, RefusedError, RemoteError, bucket
from medprobe.storage import Url, is_url

AT_ONCE = 16  # downloads of one process


class Downloads:
    """The images of a chunk, on their way from the start.

    Args:
        payloads: Of which those with a URL are downloaded.

    """

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self._paths = [payload.path if isinstance(payload, Part) else payload for payload in payloads]
        masks = [payload.mask for payload in payloads if isinstance(payload, Part)]
        self._pool = ThreadPoolExecutor(AT_ONCE)
        wanted = dict.fromkeys(path for path in (*self._paths, *masks) if isinstance(path, str) and is_url(path))
        self._coming: dict[str, Future[tuple[bytes, Stamp]]] = {url: self._pool.submit(_fetch, url) for url in wanted}

    def __enter__(self) -> Downloads:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, path: str) -> bytes:
        """Return the bytes of an image; a file's as :func:`~medprobe.images.raster.read_source` does.

        Raises:
            ImageError: Its server does not give it.

        """
        return self._coming[path].result()[0] if path in self._coming else read_source(path)

    def stamps(self) -> list[Stamp | None]:
        """Return, of each payload, what its server has said of the image that was downloaded; None for one without a URL."""
        return [self._stamp(path) if isinstance(path, str) and path in self._coming else None for path in self._paths]

    def _stamp(self, url: str) -> Stamp:
        # Of an image that did not come nothing is known: the next run looks again.
        return UNKNOWN if self._coming[url].exception() else self._coming[url].result()[1]


def read_object(url: str) -> bytes:
    """Return the bytes of an image.

    Raises:
        ImageError: It is missing, empty, larger than ``MAX_BYTES``, or its server does not give it.

    """
    return _fetch(url)[0]


def open_object(url: str) -> BinaryIO:
    """Return an image, opened for reading.

    Raises:
        ImageError: As for :func:`read_object`.

    """
    return io.BytesIO(read_object(url))


def start_of(url: str, length: int) -> bytes:
    """Return the first bytes of an object; none where it cannot be read."""
    place = Url(url)
    try:
        return bucket(place.server).start(place.key, length)
    except DataError:
        return b""


def stamp_of(url: str) -> Stamp:
    """Return what tells an object from a changed one, ``UNKNOWN`` where there is none, or none that may be read.

    Raises:
        DataError: Its server does not say.

    """
    place = Url(url)
    try:
        entry = bucket(place.server).head(place.key)
    except RefusedError:
        return UNKNOWN
    return UNKNOWN if entry is None else stamp(entry)


def stamp(entry: Entry) -> Stamp:
    """Return an object's size, and a number made from its entity tag; of one without a tag, the time of its change."""
    if not entry.tag:
        return entry.size, entry.time
    return entry.size, int.from_bytes(hashlib.blake2b(entry.tag.encode(), digest_size=8).digest()) >> 1


def _fetch(url: str) -> tuple[bytes, Stamp]:
    try:
        place = Url(url)
        data, entry = bucket(place.server).fetch(place.key, MAX_BYTES)
    except FileNotFoundError:
        raise ImageError("missing") from None
    except RefusedError:
        raise ImageError("no permission to read it") from None
    except RemoteError as error:
        raise UnreachableError(f"not downloaded: {error.reason}") from None
    if entry.size > MAX_BYTES:
        raise ImageError(f"too large: over {MAX_BYTES >> 20} MiB")
    if not data:
        raise ImageError("empty file")
    return data, stamp(entry)
