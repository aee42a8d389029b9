"""The pages of `artifacts/` over HTTP, to this machine alone and read-only: a browser follows no link from another page to a file.

The path of a file in the project is its path in the address. Served are artifacts/ and those of runs beside the folder, no other file.
"""

import functools
import io
from collections.abc import Iterator
from html import escape
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO
from urllib.parse import quote

from blip_core.versions.cache import open_cache

HOST, PORT = "127.0.0.1", 8765
ARTIFACTS, RUNS = "artifacts", ".work/runs"
NAMES = (HOST, "localhost")  # by which a browser may ask: a page elsewhere whose name leads here must not read
PAGES = ("*.html", "*/*.html", "*/*/index.html")


def serve(root: Path, port: int) -> ThreadingHTTPServer:
    """A server of the project's pages, listening; 0 takes any port that is free. ValueError where the port is taken."""
    try:
        return ThreadingHTTPServer((HOST, port), functools.partial(_Handler, root=root.resolve(), homes=_homes(root)))
    except (OSError, OverflowError) as e:
        raise ValueError(f"--port {port}: {e}; name another, or 0 for any that is free") from None


def pages(root: Path) -> list[Path]:
    """Pages for people, relative to `root`: of its artifacts, and of the runs beside it."""
    folders = [root / ARTIFACTS, *sorted((root / RUNS).glob(f"*/{ARTIFACTS}"))]
    return [page.relative_to(root) for folder in folders for pattern in PAGES for page in sorted(folder.glob(pattern))]


def address(page: Path, port: int = PORT) -> str:
    return f"http://{HOST}:{port}/{quote(page.as_posix())}"


def _homes(root: Path) -> list[Path]:
    """Where what is served lies, links followed: DVC may link an output to its cache."""
    homes = [root / ARTIFACTS, root / RUNS]
    try:
        with open_cache(root) as cache:
            homes.append(cache.place)
    except ValueError:  # no project of DVC
        pass
    return [home.resolve() for home in homes]


class _Handler(SimpleHTTPRequestHandler):
    """GET and HEAD, as the standard library has them, of what may be seen."""

    def __init__(self, *args: object, root: Path, homes: list[Path]):
        self._root, self._homes = root, homes
        super().__init__(*args, directory=str(root))  # type: ignore[arg-type]

    def send_head(self) -> io.BytesIO | IO[bytes] | None:  # type: ignore[override]
        if self.headers.get("Host", "").rpartition(":")[0] not in NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, f"ask for http://{HOST}")
            return None
        place = Path(self.translate_path(self.path))
        if place == self._root:
            return self._send_index()
        if not self._may_be_seen(place):
            self.send_error(HTTPStatus.NOT_FOUND, "blip show serves artifacts alone")
            return None
        return super().send_head()

    def _may_be_seen(self, place: Path) -> bool:
        parts = place.relative_to(self._root).as_posix()
        run = parts.removeprefix(f"{RUNS}/").split("/")[1:] if parts.startswith(f"{RUNS}/") else []
        inside = parts.split("/")[0] == ARTIFACTS or run[:1] == [ARTIFACTS]
        return inside and any(place.resolve().is_relative_to(home) for home in self._homes)

    def _send_index(self) -> io.BytesIO:
        items = "".join(f'<li><a href="/{quote(page.as_posix())}">{escape(title(page))}</a>' for page in pages(self._root))
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        style = "<style>:root { color-scheme: light dark; } body { font: 16px/1.6 system-ui, sans-serif; margin: 2rem; }</style>"
        body = f"<h1>{escape(self._root.name)}</h1><ul>{items}<li><a href='/{ARTIFACTS}/'>all of {ARTIFACTS}/</a></ul>"
        page = f"{head}<title>{escape(self._root.name)}</title>{style}{body}".encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        return io.BytesIO(page)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # a run may have drawn the page anew
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what a browser asked for is of no interest."""


def title(page: Path) -> str:
    """`report`, `docs/gate-r1`: the page's path without what is the same in all."""
    return page.as_posix().removeprefix(f"{ARTIFACTS}/").removesuffix("/index.html").removesuffix(".html")


def lines(root: Path, port: int) -> Iterator[str]:
    """What a person reads who starts it."""
    yield f"{address(Path(), port).rstrip('.')}  (Ctrl-C ends it)"
    yield from (f"  {address(page, port)}" for page in pages(root))
