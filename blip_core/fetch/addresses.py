"""Which addresses may be asked: those of the public network, unless allowed. A list is written by strangers, and so are redirects."""

import socket
from typing import Any
from urllib.parse import urlsplit

from blip_core.remote.addresses import is_public


class PrivateAddress(OSError):
    """A name or number that leads into a network that is not public."""


def public_socket(info: tuple[Any, Any, Any, str, tuple[Any, ...]]) -> socket.socket:
    """For a connection to this very address, whatever a URL called it. PrivateAddress where it is not public.

    `info`: as of socket.getaddrinfo. An address has many spellings, as by full-width digits, so that a look at the URL guards nothing."""
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise PrivateAddress(f"{address[0]} is no public address")
    return socket.socket(family, kind, protocol)


def place_of(url: str) -> str:
    """Host and port, which is whom we ask. ValueError where a URL is none of http or https, or names no host."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{parts.scheme or 'no'} scheme, expected http or https")
    if not parts.hostname:
        raise ValueError("no host")
    return f"{parts.hostname}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}"
