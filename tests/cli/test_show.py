"""`blip show`: pages for a browser on this machine, and no other file, whatever is asked."""

import http.client
import threading
from pathlib import Path

import pytest

from blip_core.cli.main import main
from blip_core.cli.parser import make_parser
from blip_core.cli.show import PORT, lines, serve
from tests.support.processes import HANG


@pytest.fixture
def port(tmp_path):
    for name in ("artifacts/report/index.html", "artifacts/models/g1/config.json", ".work/runs/1a2b/artifacts/report/index.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"<p>{name}</p>")
    for name in ("params.yaml", "artifacts.txt", ".work/runs/1a2b/params.yaml", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("secret")
    (tmp_path / "artifacts/out").symlink_to(tmp_path / "params.yaml")
    (tmp_path / "artifacts/all").symlink_to("/")
    (tmp_path / ".dvc/cache/files").mkdir(parents=True)
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (tmp_path / ".dvc/cache/files/ab").write_text("cached")
    (tmp_path / "artifacts/linked.txt").symlink_to("../.dvc/cache/files/ab")
    with serve(tmp_path, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_pages_are_served_by_their_path_in_the_project(port, tmp_path):
    for page in ("artifacts/report/index.html", ".work/runs/1a2b/artifacts/report/index.html"):
        assert ask(port, f"/{page}") == (200, f"<p>{page}</p>")
        assert f'href="/{page}"' in ask(port, "/")[1] and f"http://127.0.0.1:{port}/{page}" in "\n".join(lines(tmp_path, port))
    assert ask(port, "/artifacts/report/", host=f"localhost:{port}")[0] == 200 and "config.json" in ask(port, "/artifacts/models/g1/")[1]
    assert ask(port, "/artifacts/linked.txt") == (200, "cached")  # DVC may link an output to its cache
    assert ask(port, "/artifacts/report/other.html")[0] == 404


@pytest.mark.parametrize(
    "path",
    """/params.yaml /artifacts.txt /.git/config /.dvc/config /.work/ /.work/runs/1a2b/ /.work/runs/1a2b/params.yaml //etc/passwd
    /artifacts/../params.yaml /artifacts/%2e%2e/params.yaml /artifacts/..%2fparams.yaml /artifacts/..%5cparams.yaml
    /.work/runs/1a2b/artifacts/../params.yaml /artifacts/out /artifacts/all/etc/passwd""".split(),
)
def test_nothing_else_is(port, path):
    status, text = ask(port, path)
    assert status == 404 and "secret" not in text and "root:" not in text


def test_it_only_reads_and_only_for_this_machine(port):
    assert ask(port, "/artifacts/report/index.html", host="pages.example.org")[0] == 403  # a name that somebody made lead here
    for method in ("POST", "PUT", "DELETE"):
        assert ask(port, "/artifacts/report/index.html", method)[0] == 501


def test_it_listens_where_the_links_of_a_run_lead():
    assert make_parser("blip", stages=[]).parse_args(["show"]).port == PORT


def test_a_port_that_is_taken_is_said(port, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["show", "--port", str(port)]) == 1
    assert f"--port {port}: " in capsys.readouterr().err and Path("artifacts").exists()
    assert main(["show", "--port", "70000"]) == 1 and "--port 70000: " in capsys.readouterr().err
