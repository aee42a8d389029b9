"""A crawl behind https:// and the like: as if it lay here, whatever passes; and a clear word about what does not."""

import errno
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from blip_core.intake.sources import is_remote, write_listings
from blip_core.remote.elsewhere import Elsewhere
from blip_core.remote.storage import Stored
from tests.stages.test_ingest import CFG, data, digest, run  # noqa: F401

REMOTE = CFG.remote.model_copy(update={"attempts": 6, "timeout": 5})


class Server(SimpleHTTPRequestHandler):
    """Files of a folder. `trouble` says of the number of a request how it goes wrong: a status, or "cut" in the middle of the body."""

    trouble = staticmethod(lambda number: None)
    requests = 0

    def do_HEAD(self):
        Server.requests += 1
        what = Server.trouble(Server.requests)
        self.send_error(what) if isinstance(what, int) else super().do_HEAD()

    def do_GET(self):
        Server.requests += 1
        what = Server.trouble(Server.requests)
        if isinstance(what, int):
            self.send_error(what)
        elif what == "cut":
            body = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Server, "trouble", staticmethod(lambda number: None))
    monkeypatch.setattr("blip_core.remote.elsewhere.random.uniform", lambda low, high: 0.0)
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def broken(number: int) -> int | str | None:
    return {0: 503, 1: "cut"}.get(number % 4)


def test_a_crawl_behind_http_gives_the_same_bytes(served, data, tmp_path, monkeypatch):  # noqa: F811
    """Tars by braces, half of the requests broken."""
    folder, address = served
    tars = sorted((data / "web").glob("*.tar"))
    for path in (data / "web").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    run(data, tmp_path / "here")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "clean").symlink_to(data / "clean")
    stems = ",".join(path.stem for path in tars)
    ends = {path.name.removeprefix(tars[0].stem) for path in (data / "web").iterdir() if path.name.startswith(tars[0].stem)}
    place = tuple(f"{address}/{{{stems}}}{end}" for end in sorted(ends))
    cfg = CFG.model_copy(update={"web": place, "remote": REMOTE})
    write_listings(linked, cfg)
    monkeypatch.setattr(Server, "trouble", staticmethod(broken))
    run(linked, tmp_path / "there", web=place, remote=REMOTE)
    here, there = digest(tmp_path / "here"), digest(tmp_path / "there")
    same = [name for name in here if name.startswith(("shards/", "g0/", "heldout/"))]
    assert same and all(here[name] == there[name] for name in same)


def test_a_body_that_ends_early_is_never_taken_for_whole(served, tmp_path, monkeypatch):
    folder, address = served
    (folder / "a.bin").write_bytes(bytes(range(256)) * 400)
    storage = Elsewhere(REMOTE)
    (stored,) = storage.find(f"{address}/a.bin")
    assert stored.size == 102400
    monkeypatch.setattr(Server, "trouble", staticmethod(lambda number: "cut"))
    with pytest.raises(ValueError, match="a.bin: .*6 times; what was done is kept"):
        storage.fetch(stored, tmp_path / "a.bin")
    assert not list(tmp_path.glob("*a.bin*"))
    monkeypatch.setattr(Server, "trouble", staticmethod(lambda number: None))
    storage.fetch(stored, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == (folder / "a.bin").read_bytes()


def test_a_full_disk_is_told_at_once(served, tmp_path, monkeypatch):
    """It was taken for a failure of the network, and tried again."""
    folder, address = served
    (folder / "a.bin").write_bytes(b"old")
    storage, tries = Elsewhere(REMOTE), []

    async def full(self, name, path, **options):
        tries.append(name)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fsspec.implementations.http.HTTPFileSystem._get_file", full)
    monkeypatch.setattr("fsspec.implementations.http.HTTPFileSystem._cache", {})  # one that is there keeps the methods it was made with
    (stored,) = storage.find(f"{address}/a.bin")
    with pytest.raises(OSError, match="No space left"):
        storage.fetch(stored, tmp_path / "a.bin")
    assert len(tries) == 1


def test_what_changed_is_gone_or_forbidden_is_said(served, tmp_path, monkeypatch):
    folder, address = served
    (folder / "a.bin").write_bytes(b"old")
    storage = Elsewhere(REMOTE)
    (stored,) = storage.find(f"{address}/a.bin")
    (folder / "a.bin").write_bytes(b"newer")
    with pytest.raises(ValueError, match="a.bin: changed since it was listed: 3 bytes"):
        storage.fetch(stored, tmp_path / "a.bin")
    (folder / "a.bin").unlink()
    with pytest.raises(ValueError, match="list the source again"):
        storage.fetch(stored, tmp_path / "a.bin")
    assert storage.find(f"{address}/a.bin") == []
    with pytest.raises(ValueError, match="gs://b/c: .*gcsfs"):
        Elsewhere(REMOTE).find("gs://b/c")
    with pytest.raises(ValueError, match="nowhere://b/c"):
        Elsewhere(REMOTE).fetch(Stored("nowhere://b/c", 1, ""), tmp_path / "b")
    address_of_nobody = "http://127.0.0.1:9/a.tar"
    with pytest.raises(ValueError, match="a.tar: .*127.0.0.1.* 6 times"):
        storage.find(address_of_nobody)
    assert is_remote("https://a.example/{0..9}.tar") and not is_remote("file:///data/web")
