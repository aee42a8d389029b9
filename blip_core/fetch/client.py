"""One picture by its URL: what came, or why not.

A failure has a reason of a closed list; those of AGAIN may pass, so such a row is tried again, now and in the next call.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from types import TracebackType
from urllib.parse import urljoin

import aiohttp
from multidict import CIMultiDictProxy

from blip_core.fetch.addresses import PrivateAddress, any_socket, place_of, public_socket
from blip_core.fetch.hosts import Host, Hosts, allowed
from blip_core.fetch.outcome import Outcome
from blip_core.fetch.settings import KIND, FetchConfig

REASONS = {
    "bad_url": "no URL of http or https",
    "private_address": "an address that is not public, here or behind a redirect",
    "robots": "its robots.txt keeps us off",
    "noai": "its header X-Robots-Tag keeps such use off",
    "refused": "an answer that says no: 401, 403, 404, 410 and the like",
    "too_many_redirects": f"more than {(MOST_REDIRECTS := 5)} redirects",
    "too_many_bytes": "more than --max-bytes",
    "not_a_picture": "it came, and is no picture that ingest takes",
    "bad_row": "a row of the list that can't be read",
    "connection": "no connection, or one that broke",
    "timeout": "no answer in time",
    "server": "an answer of 5xx or 408",
    "throttled": "the host says that it is asked too much, or did not answer again and again",
    "robots_unknown": "its robots.txt does not answer, or can't be read",
}
AGAIN = ("connection", "timeout", "server", "throttled", "robots_unknown")
OPT_OUTS = {"noai", "noimageai", "noindex", "noimageindex"}
_VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")  # words of the header that have a value
Keep = Callable[[bytes], Outcome]  # called in a thread, with the bytes that came
_MOST_ROBOTS = 512_000  # bytes of a robots.txt


class Failed(Exception):
    """Of one row."""

    def __init__(self, reason: str, detail: str):
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, " ".join(detail.split())[:300]


class LeftAlone(Failed):
    """Its host is asked for nothing more in this call."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Client:
    """Asks many hosts at once; of one host not more than it bears."""

    def __init__(self, cfg: FetchConfig, user_agent: str):
        sockets = any_socket if cfg.private else public_socket
        connector = aiohttp.TCPConnector(limit=cfg.in_flight, limit_per_host=cfg.per_host, socket_factory=sockets, ttl_dns_cache=300)
        timeout = aiohttp.ClientTimeout(total=cfg.timeout, sock_connect=min(10.0, cfg.timeout))
        headers = {"User-Agent": user_agent, "Accept": "image/*,*/*;q=0.8", "Accept-Encoding": "identity"}
        jar = aiohttp.DummyCookieJar()
        self.session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers, cookie_jar=jar)
        self.cfg, self.hosts, self.slots = cfg, Hosts(cfg.per_host), asyncio.Semaphore(cfg.in_flight)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.session.close()

    async def fetch(self, url: str, keep: Keep) -> Outcome:
        """What `keep` made of the bytes, tried as often as cfg.attempts where a failure may pass. Failed where they do not come."""
        for attempt in range(1, self.cfg.attempts + 1):
            try:
                return await self._follow(url, keep)
            except Failed as e:
                if e.reason not in AGAIN or isinstance(e, LeftAlone) or attempt == self.cfg.attempts:
                    raise
            await asyncio.sleep(random.uniform(0, 2.0 ** (attempt - 1)))
        raise AssertionError("unreachable")

    async def _follow(self, url: str, keep: Keep) -> Outcome:
        for _ in range(MOST_REDIRECTS + 1):
            came = await self._ask(url, keep)
            if isinstance(came, Outcome):
                return came
            url = came
        raise Failed("too_many_redirects", f"the last leads to {url[:200]}")

    async def _ask(self, url: str, keep: Keep) -> Outcome | str:
        """What came, or where the answer leads. A slot is held until the picture is kept: what came and waits is bounded."""
        try:
            host = self.hosts[place_of(url)]
        except ValueError as e:
            raise Failed("bad_url", f"{url[:200]!r}: {e}") from None
        async with host.slots:
            await host.turn()
            if host.closed:
                raise LeftAlone("throttled", host.closed)
            if self.cfg.robots:
                await self._require_allowed(host, url)
            async with self.slots:
                answer = await self._polite(host, url)
                led_to = _led_to(url, answer)
                return await asyncio.to_thread(keep, _picture(answer)) if led_to is None else led_to

    async def _require_allowed(self, host: Host, url: str) -> None:
        try:
            may = await allowed(host, url, self._robots)
        except ValueError as e:
            raise Failed("bad_url", f"{url[:200]!r}: {e}") from None
        if not may:
            raise Failed("robots_unknown" if may is None else "robots", url[:200])

    async def _polite(self, host: Host, url: str) -> Answer:
        """An answer, and what it says of the host's patience."""
        try:
            answer = await self._get(url, self.cfg.max_bytes)
        except Failed as e:
            if e.reason in ("connection", "timeout"):
                host.refused(str(e), 0.0, self.cfg.most_wait)
            raise
        if answer.status in (429, 503):
            host.refused(f"it answers {answer.status}", _rest(answer.headers.get("Retry-After", "")), self.cfg.most_wait)
            raise Failed("throttled", f"it answers {answer.status}")
        host.answered()
        return answer

    async def _robots(self, url: str) -> tuple[int, bytes]:
        """Redirects are followed likewise. OSError where it does not answer."""
        try:
            for _ in range(MOST_REDIRECTS + 1):
                answer = await self._get(url, _MOST_ROBOTS)
                if (led_to := _led_to(url, answer)) is None:
                    return answer.status, answer.body
                url = led_to
        except Failed as e:
            if e.reason in ("bad_url", "private_address"):
                raise
            raise OSError(str(e)) from None
        return 404, b""

    async def _get(self, url: str, most: int) -> Answer:
        """One request. Its body is read to `most` bytes; Failed where there are more."""
        try:
            place_of(url)  # aiohttp would take ws as well
            async with self.session.get(url, allow_redirects=False) as response:
                body = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    body += chunk
                    if len(body) > most:
                        raise Failed("too_many_bytes", f"more than {most}")
                return Answer(response.status, response.headers, bytes(body))
        except TimeoutError:
            raise Failed("timeout", f"{self.cfg.timeout:g} s") from None
        except aiohttp.ClientConnectorError as e:
            reason = "private_address" if isinstance(e.os_error, PrivateAddress) else "connection"
            raise Failed(reason, str(e.os_error)) from None
        except (aiohttp.InvalidURL, ValueError) as e:
            raise Failed("bad_url", f"{url[:200]!r}: {e}") from None
        except (aiohttp.ClientError, OSError) as e:
            raise Failed("connection", f"{type(e).__name__} {e}") from None


def _led_to(url: str, answer: Answer) -> str | None:
    """Where a redirect leads. Failed where that is no URL."""
    if answer.status not in (301, 302, 303, 307, 308) or "Location" not in answer.headers:
        return None
    try:
        return urljoin(url, to := answer.headers["Location"])
    except ValueError as e:
        raise Failed("bad_url", f"a redirect to {to[:200]!r}: {e}") from None


def _picture(answer: Answer) -> bytes:
    if answer.status in (408, 425) or answer.status >= 500:
        raise Failed("server", f"it answers {answer.status}")
    if answer.status != 200:
        raise Failed("refused", f"it answers {answer.status}")
    if said := next(filter(None, map(opted_out, answer.headers.getall("X-Robots-Tag", ()))), None):
        raise Failed("noai", f"X-Robots-Tag: {said}")
    return answer.body


def opted_out(header: str) -> str | None:
    """The word of an X-Robots-Tag that keeps us off; one that is for another robot ("googlebot: noindex") says nothing to us."""
    speaks_to = ""
    for part in header.lower().split(","):
        name, colon, rest = part.partition(":")
        if colon and name.strip() not in _VALUED:
            speaks_to, part = name.strip(), rest
        if (word := part.strip()) in OPT_OUTS and speaks_to in ("", KIND):
            return word
    return None


def _rest(header: str) -> float:
    """Seconds of a Retry-After, a number or a date; 0 where it says nothing."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
