"""Which addresses may be asked: those of the public network, unless allowed. A list is written by strangers, and so are redirects."""

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from blip_core.remote.addresses import is_public


class PrivateAddress(OSError):
    """A name or number that leads into a network that is not public."""


# where clouds tell a machine its keys; no pictures are there, whatever else of a private network may be asked
_SECRETS = [ipaddress.ip_network(one) for one in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "100.100.100.200/32")]
_Info = tuple[Any, Any, Any, str, tuple[Any, ...]]  # as of socket.getaddrinfo


def public_socket(info: _Info) -> socket.socket:
    """For a connection to this very address, whatever a URL called it. PrivateAddress where it is not public.

    An address has many spellings, as by full-width digits, so that a look at the URL guards nothing."""
    if not is_public(address := info[4][0]):
        raise PrivateAddress(f"{address} is no public address")
    return socket.socket(*info[:3])


def any_socket(info: _Info) -> socket.socket:
    """Likewise; PrivateAddress where a cloud keeps its secrets."""
    number = ipaddress.ip_address(info[4][0].partition("%")[0])
    number = getattr(number, "ipv4_mapped", None) or number
    if any(number in network for network in _SECRETS):
        raise PrivateAddress(f"{number} is where a cloud tells a machine its keys; it is never asked")
    return socket.socket(*info[:3])


def place_of(url: str) -> str:
    """Host and port, which is whom we ask. ValueError where a URL is none of http or https, or names no host."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{parts.scheme or 'no'} scheme, expected http or https")
    if not parts.hostname:
        raise ValueError("no host")
    return f"{parts.hostname}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}"
