"""An image from a URL that a client names. Off unless BLIP_SERVE_URLS says which hosts: `images.example.org,cdn.example.org`, `*` for any.

A server that fetches what strangers name can be made to ask its own network (SSRF). So: http and https alone; no redirects, no user
names; a name must resolve to public addresses only, and the connection goes to the very address that was looked at; a private address
only where the list names that address itself (`10.0.0.5`). Bytes and seconds are bounded, and what comes must be an image all the same.
"""

import http.client
import os
import socket
import ssl
import threading
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from blip_core.remote.addresses import is_public
from blip_core.serving.options import BadRequest

VARIABLE = "BLIP_SERVE_URLS"
SECONDS = 10.0  # for the whole of a file, however slowly it drips
_PORTS = {"http": 80, "https": 443}


def is_url(value: str) -> bool:
    return value[:8].lower().startswith(("http://", "https://"))


def fetch(url: str, *, max_bytes: int) -> bytes:
    """The file behind a URL. BadRequest says why there is none."""
    allowed = {host.strip().lower() for host in os.environ.get(VARIABLE, "").split(",") if host.strip()}
    if not allowed:
        raise BadRequest(f"URLs are not fetched here; send the file as base64 (whoever runs the server may allow hosts by {VARIABLE})")
    parts = _checked(url, allowed)
    address = _address(parts, allowed)
    try:
        return _get(parts, address, max_bytes)
    except (OSError, http.client.HTTPException) as e:
        raise BadRequest(f"{_short(url)}: not fetched (within {SECONDS:g} s; {type(e).__name__}: {e})") from None


def _checked(url: str, allowed: set[str]) -> SplitResult:
    """The parts of a URL whose host is allowed."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as e:
        raise BadRequest(f"{_short(url)}: no URL ({e})") from None
    if any(c <= " " or c == "\x7f" for c in url) or not url.isascii():
        raise BadRequest(f"{_short(url)}: a URL with characters that must be percent-encoded")
    if not parts.hostname or "@" in parts.netloc:
        raise BadRequest(f"{_short(url)}: expected http(s)://host/path, without a user name")
    if "*" not in allowed and parts.hostname not in allowed:
        raise BadRequest(f"{_short(url)}: host {parts.hostname!r} is not among those that this server may ask")
    return parts


def _address(parts: SplitResult, allowed: set[str]) -> str:
    """Where to connect: an address that is public, or is itself on the list."""
    host = parts.hostname
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, parts.port or _PORTS[parts.scheme], type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as e:
        raise BadRequest(f"{_short(parts.geturl())}: host {host!r} is not known ({e})") from None
    if not all(is_public(address) or (address == host and host in allowed) for address in found):
        raise BadRequest(f"{_short(parts.geturl())}: host {host!r} is at an address of a private network, which this server does not ask")
    return sorted(found)[0]


def _get(parts: SplitResult, address: str, max_bytes: int) -> bytes:
    """One request to one address; redirects are answers like others that are no file."""
    assert parts.hostname
    sock = socket.create_connection((address, parts.port or _PORTS[parts.scheme]), timeout=SECONDS)
    if parts.scheme == "https":
        sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname, do_handshake_on_connect=False)
    late = threading.Event()
    ends = threading.Timer(SECONDS, _end, [sock, late])  # a timeout of the socket starts anew with every byte
    ends.daemon = True
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    connection.sock = sock
    try:
        ends.start()
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        connection.request("GET", path, headers={"Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise BadRequest(f"{_short(parts.geturl())}: answered {answer.status}, expected 200 (redirects are not followed)")
        data = answer.read(max_bytes + 1)
        if len(data) <= max_bytes and (answer.length or late.is_set()):  # where no length was told, an end looks like any other
            raise TimeoutError(f"broke off after {len(data)} bytes")
    finally:
        ends.cancel()
        sock.close()
    if len(data) > max_bytes:
        raise BadRequest(f"{_short(parts.geturl())}: more than {max_bytes} bytes")
    return data


def _end(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):  # the other side may have ended it
        sock.shutdown(socket.SHUT_RDWR)


def _short(url: str) -> str:
    return ascii(url[:100])
