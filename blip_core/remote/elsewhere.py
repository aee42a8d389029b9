"""Data wherever fsspec reads: https://, gs://, az://, hf:// and others, whose own package must be installed (fsspec names it).

Of these servers no more is known than size and, where they tell it, an ETag or a time: a file counts as whole when it has the size
that was listed and is still the one that was. S3 has checksums and goes on where it broke: storage.py.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blip_core.config.intake import RemoteConfig
from blip_core.files.atomic import disk_full, new_file
from blip_core.remote.storage import SCHEME, Storage, Stored

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")
log = logging.getLogger(__name__)

_IDENTITIES = ("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "last_modified", "mtime", "updated", "created")
_LONGEST_WAIT = 20.0


class _Passing(Exception):
    """A failure that may pass."""


class Elsewhere:
    """find and fetch as those of Storage."""

    def __init__(self, cfg: RemoteConfig):
        self.cfg = cfg

    def find(self, url: str) -> list[Stored]:
        """The file of this name, else all files below it, by name; none when nothing is there."""

        def look() -> list[dict[str, Any]]:
            files, path = self._open(url)
            try:
                info = files.info(path)
            except FileNotFoundError as e:
                if not _missing(e):
                    raise
                return []
            found = files.find(path, detail=True).values() if info["type"] == "directory" else [info]
            return [{**entry, "url": files.unstrip_protocol(entry["name"])} for entry in found]

        return sorted((_stored(entry) for entry in self._try(url, look)), key=lambda s: s.url)

    def fetch(self, stored: Stored, path: Path) -> None:
        """Write the file's bytes to `path`, which appears by rename once it is whole. ValueError when it changed or does not come."""

        def get() -> None:
            files, name = self._open(stored.url)
            now = _stored({**files.info(name), "url": stored.url})
            if now != stored:
                raise ValueError(
                    f"{stored.url}: changed since it was listed: {stored.size} bytes, {stored.etag} then, {now.size} bytes, {now.etag} "
                    "now; list the source again with `blip list`"
                )
            files.get_file(name, str(temporary))
            if (size := temporary.stat().st_size) != stored.size:
                raise _Passing(f"{size} of {stored.size} bytes came")

        with new_file(path) as temporary:
            self._try(stored.url, get)

    def _open(self, url: str) -> tuple["AbstractFileSystem", str]:
        """The file system and the path in it."""
        from aiohttp import ClientTimeout
        from fsspec.core import url_to_fs

        limits = {"client_kwargs": {"timeout": ClientTimeout(sock_connect=self.cfg.timeout, sock_read=self.cfg.timeout)}}
        options = limits if url.startswith(("http://", "https://")) else {}
        try:
            return url_to_fs(url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as e:
            raise ValueError(f"{url}: {e}; expected a folder, file://, s3:// or what an installed package of fsspec reads") from None

    def _try(self, url: str, act: Callable[[], T]) -> T:
        """What `act` returns, tried cfg.attempts times where a failure may pass."""
        for attempt in range(self.cfg.attempts):
            try:
                with _sorted_out(url):
                    return act()
            except _Passing as e:
                failure = e
                log.warning("%s: %s, try %d of %d", url, e, attempt + 1, self.cfg.attempts)
                if attempt + 1 < self.cfg.attempts:
                    time.sleep(random.uniform(0, min(_LONGEST_WAIT, 2.0**attempt)))
        raise ValueError(f"{url}: {failure}, {self.cfg.attempts} times; what was done is kept: run again, or raise ingest.remote.attempts")


def storage_of(url: str, cfg: RemoteConfig) -> Storage | Elsewhere:
    return Storage(cfg) if url.startswith(SCHEME) else Elsewhere(cfg)


@contextmanager
def _sorted_out(url: str) -> Iterator[None]:
    """Tell failures that may pass from those that stay."""
    from aiohttp import ClientError, ClientResponseError

    try:
        yield
    except ClientResponseError as e:
        if e.status == 429 or e.status >= 500:
            raise _Passing(f"answered {e.status} {e.message}") from None
        raise ValueError(f"{url}: answered {e.status} {e.message}; see the name and your rights there") from None
    except (ClientError, OSError, TimeoutError) as e:
        if disk_full(e):
            raise
        if isinstance(e, PermissionError) or (isinstance(e, FileNotFoundError) and _missing(e)):
            raise ValueError(f"{url}: {type(e).__name__} {e}; list the source again with `blip list`") from None
        raise _Passing(" ".join(str(e.__cause__ or f"{type(e).__name__} {e}").split())) from None


def _missing(error: FileNotFoundError) -> bool:
    """fsspec says so of every failure of a web server, and keeps the failure as the cause."""
    cause = error.__cause__
    return cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in (404, 410)


def _stored(entry: dict[str, Any]) -> Stored:
    if entry.get("size") is None:
        raise ValueError(f"{entry['url']}: its server tells no size, so nobody could tell whether it came whole; copy it to a folder")
    identity = next((f"{name} {entry[name]}" for name in _IDENTITIES if entry.get(name)), "")
    return Stored(entry["url"], entry["size"], identity)
