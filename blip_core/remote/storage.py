"""Objects in S3, or in what speaks its language (MinIO, Ceph, R2, Swift): found, fetched, uploaded. The only home of boto3.

Endpoint and credentials come as boto3 and the AWS tools know them: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ~/.aws, the role of the machine. Without any credentials it asks anonymously, as public data wants it.

A request that meets 429, 5xx or a broken connection is repeated by boto3, after waits that grow exponentially with full jitter
(its mode `legacy`: the others do not repeat a bare 429). A body that breaks, stalls or ends early goes on at its last byte: boto3
repeats none, and takes a body whose Content-Length lies for whole. Nothing has its final name before size and checksum agree.
"""

import logging
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from blip_core.config.intake import RemoteConfig
from blip_core.files.atomic import new_file
from blip_core.remote.checksums import wrong_checksum

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

log = logging.getLogger(__name__)

SCHEME = "s3://"
_PART = 16 << 20  # bytes of a range, and of a part of an upload
_CHUNK = 1 << 20
_PAGE = 1000  # keys of one answer to a listing
_LONGEST_WAIT = 20.0
_ADVICE = {
    "SignatureDoesNotMatch": "the secret is wrong: see AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "this endpoint does not know the access key: see AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL_S3",
    "ExpiredToken": "the session has ended: get new credentials",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "NoSuchBucket": "there is no such bucket at this endpoint: see the name and AWS_ENDPOINT_URL_S3",
    "NoSuchKey": "there is no such object any more: list the source again with `blip list`",
    "InvalidObjectState": "the object is archived: restore it first",
    "403": "these credentials may not do this: see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
    "404": "there is no such object or bucket",
}


@dataclass(frozen=True)
class Stored:
    """An object as it was listed. `version` is known where the bucket keeps versions and the object was asked for by name."""

    url: str
    size: int
    etag: str
    version: str | None = None


class _Broken(Exception):
    """The answer ended before its time."""


class Storage:
    """One client. Threads may share it, processes may not."""

    def __init__(self, cfg: RemoteConfig):
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        limits = {
            "connect_timeout": cfg.timeout,
            "read_timeout": cfg.timeout,
            "max_pool_connections": cfg.connections**2,
        }  # of that many objects at a time
        config = Config(retries={"mode": "legacy", "total_max_attempts": cfg.attempts}, **limits)
        self.cfg = cfg
        try:
            session = boto3.Session()
            if session.get_credentials() is None:
                config = config.merge(Config(signature_version=UNSIGNED))
            self._client = session.client("s3", config=config)
        except (BotoCoreError, ValueError) as e:  # a profile or an endpoint that makes no sense
            raise ValueError(f"S3: {e}; see AWS_PROFILE, AWS_ENDPOINT_URL_S3 and ~/.aws/config") from None

    def find(self, url: str) -> list[Stored]:
        """The object of this name, else all objects below it, by name; none when nothing is there."""
        bucket, key = split_url(url)
        if key and not key.endswith("/") and (found := self.head(url)):
            return [found]
        prefix = key if key.endswith("/") or not key else f"{key}/"
        with self._explained(url):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": _PAGE}
            )
            entries = [entry for page in pages for entry in page.get("Contents", [])]
        files = (e for e in entries if not e["Key"].endswith("/"))  # consoles mark folders by empty objects
        return sorted((Stored(f"{SCHEME}{bucket}/{e['Key']}", e["Size"], e["ETag"].strip('"')) for e in files), key=lambda s: s.url)

    def head(self, url: str) -> Stored | None:
        """The object of this name. None where there is none or it may not be asked for: a listing or a fetch tells which."""
        from botocore.exceptions import ClientError

        bucket, key = split_url(url)
        with self._explained(url):
            try:
                answer = self._client.head_object(Bucket=bucket, Key=key)
            except ClientError as e:
                if _status(e) in (400, 403, 404):  # an answer to HEAD has no body that could tell more
                    return None
                raise
        version = answer.get("VersionId")
        return Stored(url, answer["ContentLength"], answer["ETag"].strip('"'), None if version == "null" else version)

    def fetch(self, stored: Stored, path: Path) -> None:
        """Write the object's bytes to `path`, which appears by rename once size and checksum agree.

        ValueError when the object is not the one that was listed, may not be read, or does not come whole after cfg.attempts."""
        head = self._same(stored)
        with new_file(path) as temporary:
            for _ in range(2):  # a bit that flips on the way is rare; twice is no accident
                self._download(stored, temporary)
                fault = self._fault(stored, head, temporary)
                if fault is None:
                    return
                log.warning("%s: %s; fetching it again", stored.url, fault)
            raise ValueError(f"{stored.url}: {fault}, twice; the stored object is damaged, or something on the way changes it")

    def upload(self, path: Path, url: str) -> None:
        """Make the file an object, which others see whole or not at all. ValueError when it does not hold the file's bytes then."""
        from boto3.exceptions import Boto3Error
        from boto3.s3.transfer import TransferConfig

        bucket, key = split_url(url)
        config = TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=self.cfg.connections)
        with self._explained(url):
            try:
                self._client.upload_file(str(path), bucket, key, Config=config)
            except Boto3Error as e:
                raise ValueError(f"{url}: {e}") from None
        if not ((stored := self.head(url)) and self.holds(stored, path)):
            raise ValueError(f"{url}: what lies there after the upload is not {path}; upload it again")

    def holds(self, stored: Stored, path: Path) -> bool:
        """Whether the object has the bytes of the file, as far as its size and checksums tell."""
        return stored.size == path.stat().st_size and self._fault(stored, self._same(stored), path) is None

    def _same(self, stored: Stored) -> dict[str, Any]:
        """The object's headers; ValueError when it is another than was listed."""
        with self._explained(stored.url):
            head = self._client.head_object(**self._named(stored), ChecksumMode="ENABLED")
        if (head["ContentLength"], head["ETag"].strip('"')) != (stored.size, stored.etag):
            raise ValueError(_changed(stored, f"{head['ContentLength']} bytes, ETag {head['ETag']}"))
        return head

    def _named(self, stored: Stored) -> dict[str, str]:
        bucket, key = split_url(stored.url)
        return {"Bucket": bucket, "Key": key} | ({"VersionId": stored.version} if stored.version else {})

    def _fault(self, stored: Stored, head: dict[str, Any], path: Path) -> str | None:
        def part_size(number: int) -> tuple[int, int]:
            with self._explained(stored.url):
                part = self._client.head_object(**self._named(stored), PartNumber=number)
            return part["ContentLength"], part.get("PartsCount", 0)

        return wrong_checksum(path, head, part_size)

    def _download(self, stored: Stored, path: Path) -> None:
        """All ranges of the object, several side by side."""
        with path.open("wb") as file:
            file.truncate(stored.size)
        stop = Event()
        with ThreadPoolExecutor(self.cfg.connections) as pool:
            starts = range(0, stored.size, _PART)
            futures = [pool.submit(self._range, stored, path, start, min(start + _PART, stored.size), stop) for start in starts]
            try:
                for future in futures:
                    future.result()
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _range(self, stored: Stored, path: Path, at: int, end: int, stop: Event) -> None:
        """One range of bytes; after a break it goes on at the last byte. Breaks count where not one byte came between them."""
        breaks = 0
        with path.open("r+b") as file:
            file.seek(at)
            while at < end and not stop.is_set():
                try:
                    for data in self._body(stored, at, end):
                        file.write(data)
                        at, breaks = at + len(data), 0
                        if stop.is_set():
                            return
                except _Broken as e:
                    breaks += 1
                    if breaks >= self.cfg.attempts:
                        raise ValueError(
                            f"{stored.url}: broke {breaks} times at byte {at} of {stored.size} ({e}); what was done is kept: "
                            "run again, or see ingest.remote.attempts and timeout"
                        ) from None
                    if breaks > 1:
                        log.warning("%s: broke at byte %d of %d (%s), going on from there", stored.url, at, stored.size, e)
                    stop.wait(random.uniform(0, min(_LONGEST_WAIT, 2.0 ** (breaks - 1))))

    def _body(self, stored: Stored, at: int, end: int) -> Iterator[bytes]:
        """Bytes from `at` on, never beyond `end`; _Broken when they end before it."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        wanted = {"Range": f"bytes={at}-{end - 1}", "IfMatch": f'"{stored.etag}"'}
        with self._explained(stored.url, stored):
            answer = self._client.get_object(**self._named(stored), **wanted)
        with closing(answer["Body"]) as body:
            if answer["ETag"].strip('"') != stored.etag:  # of a server that does not know If-Match
                raise ValueError(_changed(stored, f"ETag {answer['ETag']}"))
            if not answer.get("ContentRange", "bytes 0-").startswith(f"bytes {at}-"):  # the whole object may come without
                raise ValueError(f"{stored.url}: asked for bytes from {at} on, got {answer.get('ContentRange')!r}: no range of the object")
            while at < end:
                try:
                    data = body.read(min(_CHUNK, end - at))
                except (HTTPClientError, IncompleteReadError) as e:
                    raise _Broken(type(e).__name__) from None
                if not data:
                    raise _Broken("an answer shorter than the range")
                yield data
                at += len(data)

    @contextmanager
    def _explained(self, url: str, stored: Stored | None = None) -> Iterator[None]:
        """Turn what boto3 raises into one ValueError: what was asked, what came, what to do. No message holds a secret."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as e:
            error, status = e.response.get("Error", {}), _status(e)
            if status == 412 and stored:
                raise ValueError(_changed(stored, "another ETag")) from None
            got = " ".join(dict.fromkeys(map(str, (status, error.get("Code", ""), error.get("Message", "")))))
            if status == 429 or status >= 500:
                advice = f"so {self.cfg.attempts} times: try later, or raise ingest.remote.attempts; what was done is kept"
            else:
                advice = _ADVICE.get(error.get("Code", "")) or _ADVICE.get(str(status), "see the server's documentation")
            raise ValueError(f"{url}: {_shown(self._client.meta.endpoint_url)} answered {got.rstrip('.')}: {advice}") from None
        except BotoCoreError as e:
            raise ValueError(
                f"{url}: {_shown(str(e))} ({type(e).__name__}); see AWS_ENDPOINT_URL_S3, the network, ingest.remote.attempts and timeout"
            ) from None


def split_url(url: str) -> tuple[str, str]:
    """Bucket and key; the key may be empty."""
    match = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,62})(?:/(.*))?", url, re.DOTALL)
    if not match:
        raise ValueError(f"{url}: expected s3://BUCKET/PREFIX")
    return match[1], match[2] or ""


def _shown(text: str) -> str:
    """Without the password that an endpoint's URL may hold."""
    return re.sub(r"://[^/@\s]*@", "://", text)


def _changed(stored: Stored, got: str) -> str:
    return (
        f"{stored.url}: changed since it was listed: {stored.size} bytes, ETag {stored.etag} then, {got} now; "
        "list the source again with `blip list`"
    )


def _status(error: "ClientError") -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
