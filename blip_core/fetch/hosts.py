"""What is known of each host during a call: how many ask it, how long it wants to be left alone, what its robots.txt says."""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit
from urllib.robotparser import RobotFileParser

from blip_core.fetch.settings import KIND

_STRIKES = 5  # refusals, or failures to connect, one after the other: then the host is left alone for the rest of the call
_MOST_HOSTS = 20_000  # whose state is kept


class Host:
    """`strikes`: refusals in a row; `closed`: why it is left alone."""

    def __init__(self, at_once: int):
        self.slots = asyncio.Semaphore(at_once)
        self.rest_until, self.strikes = 0.0, 0
        self.closed: str | None = None
        self.robots: dict[str, asyncio.Future[RobotFileParser | None]] = {}

    async def turn(self) -> None:
        """Wait until it may be asked again, or never."""
        while not self.closed and (wait := self.rest_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def refused(self, why: str, rest: float, most: float) -> None:
        """It said that it is asked too much, or did not answer at all."""
        self.strikes += 1
        self.rest_until = max(self.rest_until, time.monotonic() + min(most, rest or random.uniform(0.5, 1) * 2**self.strikes))
        if self.strikes >= _STRIKES or rest > most:
            self.closed = why

    def answered(self) -> None:
        self.strikes = 0


class Hosts:
    """By name; those that were asked last are kept."""

    def __init__(self, at_once: int):
        self.at_once, self.known = at_once, OrderedDict[str, Host]()

    def __getitem__(self, name: str) -> Host:
        host = self.known.get(name) or self.known.setdefault(name, Host(self.at_once))
        self.known.move_to_end(name)
        while len(self.known) > _MOST_HOSTS:
            self.known.popitem(last=False)
        return host


async def allowed(host: Host, url: str, get: Callable[[str], Awaitable[tuple[int, bytes]]]) -> bool | None:
    """Whether robots.txt of its origin lets us fetch `url`; None while that can't be known (RFC 9309: then it may not be fetched).

    `get`: status and bytes of a URL, OSError where it does not answer. ValueError where `url` can't be read."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    if origin not in host.robots:
        host.robots[origin] = asyncio.ensure_future(_robots(f"{origin}/robots.txt", get))
    rules = await asyncio.shield(host.robots[origin])
    return rules.can_fetch(KIND, url) if rules else None


async def _robots(url: str, get: Callable[[str], Awaitable[tuple[int, bytes]]]) -> RobotFileParser | None:
    rules = RobotFileParser(url)
    try:
        status, body = await get(url)
    except OSError:
        return None
    if status == 429 or status >= 500:
        return None
    try:
        rules.parse(body.decode("utf-8", "replace").splitlines() if status < 300 else [])
    except ValueError:  # as of `Disallow: //[`
        return None
    return rules
