"""Which addresses may be asked: those of the public network, unless allowed. A list is written by strangers, and so are redirects."""

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver


class PrivateAddress(OSError):
    """A name or number that leads into a network that is not public."""


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses alone. The connection is made to what was checked, so no second answer can slip in."""

    def __init__(self) -> None:
        self.resolver = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        found = await self.resolver.resolve(host, port, family)
        for address in found:
            require_public(address["host"])
        return found

    async def close(self) -> None:
        await self.resolver.close()


def require_public(address: str) -> None:
    """PrivateAddress where it is none."""
    number: Any = ipaddress.ip_address(address.partition("%")[0])
    if not (getattr(number, "ipv4_mapped", None) or number).is_global or number.is_multicast:
        raise PrivateAddress(f"{address} is no public address")


def host_of(url: str) -> str:
    """The host of a URL that may be asked. ValueError where it is none of http or https, or names no host."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{parts.scheme or 'no'} scheme, expected http or https")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname


def place_of(url: str) -> str:
    """Host and port, which is whom we ask. ValueError as of `host_of`."""
    parts = urlsplit(url)
    return f"{host_of(url)}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}"


def is_number(host: str) -> bool:
    """Whether a host is an address already, which no resolver sees."""
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True
