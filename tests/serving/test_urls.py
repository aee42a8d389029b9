"""Images by URL: off by default, and what a server may be made to ask of its own network."""

import http.server
import socket
import threading
import time
from typing import ClassVar

import pytest

from blip_core.serving import urls
from blip_core.serving.options import BadRequest
from blip_core.serving.urls import VARIABLE, fetch

FILE = b"GIF89a" + bytes(2000)


class Answers(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self):
        self.asked.append((self.path, self.headers["Host"]))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file.gif")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/lost" else 200)
        if self.path == "/short":
            self.send_header("Content-Length", "5000")
        self.end_headers()
        if self.path == "/slow":  # a byte now and then, and no length
            for _ in range(100):
                self.wfile.write(b"G")
                self.wfile.flush()
                time.sleep(0.05)
        self.wfile.write(FILE)

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """The URL of a server at a private address that the list names."""
    Answers.asked.clear()
    monkeypatch.setenv(VARIABLE, "images.example.org, 127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_a_file_of_an_allowed_host(server):
    assert fetch(f"{server}/file.gif?size=2", max_bytes=5000) == FILE
    assert Answers.asked == [("/file.gif?size=2", server.removeprefix("http://"))]


def test_off_unless_the_environment_names_hosts(server, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(BadRequest, match="URLs are not fetched here; send the file as base64"):
        fetch(f"{server}/file.gif", max_bytes=5000)
    assert not Answers.asked


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/moved", "answered 302, expected 200 .redirects are not followed"),
        ("/lost", "answered 404"),
        ("/short", "broke off after 2006 bytes"),
        ("/file.gif#" + "x" * 200, "more than 1000 bytes"),
        ("/a b", "must be percent-encoded"),
        ("/a\r\nHost: b", "must be percent-encoded"),
    ],
)
def test_what_is_no_file_is_refused(server, path, message):
    with pytest.raises(BadRequest, match=message):
        fetch(server + path, max_bytes=1000 if "more" in message else 5000)


def test_a_file_that_drips_ends_at_the_limit(server, monkeypatch):
    monkeypatch.setattr(urls, "SECONDS", 0.4)
    began = time.monotonic()
    with pytest.raises(BadRequest, match="not fetched .within 0.4 s"):
        fetch(f"{server}/slow", max_bytes=5000)
    assert time.monotonic() - began < 4  # all of it takes 5


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{port}/",
        "http://other.example.org/",
        "http://user@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}:80/",
        "http://2130706433:{port}/",
        "http:///file.gif",
    ],
)
def test_other_hosts_are_not_asked(server, url):
    with pytest.raises(BadRequest):
        fetch(url.format(port=server.rsplit(":")[-1]), max_bytes=5000)
    assert not Answers.asked


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.5", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.5", "2002:a00:5::", "64:ff9b::a00:5", "0.0.0.0"],
)
def test_no_name_leads_into_a_private_network(server, monkeypatch, address):
    """Neither an allowed name nor any: its owner may point it anywhere. One bad address among good ones is enough to refuse."""
    entries = [(0, 0, 0, "", ("8.8.8.8", 80)), (0, 0, 0, "", (address, 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    for allowed in ("images.example.org", "*"):
        monkeypatch.setenv(VARIABLE, allowed)
        with pytest.raises(BadRequest, match="private network"):
            fetch(f"http://images.example.org:{server.rsplit(':')[-1]}/file.gif", max_bytes=5000)
    assert not Answers.asked


def test_any_public_host_does_not_mean_any_address(server, monkeypatch):
    monkeypatch.setenv(VARIABLE, "*")
    with pytest.raises(BadRequest, match="private network"):
        fetch(f"{server}/file.gif", max_bytes=5000)
