"""A list of URLs becomes tars in img2dataset's layout, from hosts that fail, refuse, redirect and forbid, and whatever is killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.__main__ import main
from blip_core.fetch.client import opted_out
from blip_core.fetch.hosts import Host
from blip_core.fetch.outcome import Outcome
from blip_core.fetch.rows import open_lists
from blip_core.fetch.settings import FetchConfig
from blip_core.fetch.spool import Spool
from blip_core.intake.formats import webdataset
from blip_core.remote.addresses import is_public
from tests.support.archives import jpeg
from tests.support.processes import HANG, cold, wait_until
from tests.support.trainings import environment


class Hosts:
    """A server of pictures whose paths say how it behaves; it counts what was asked and what it gave."""

    def __init__(self) -> None:
        self.asked, self.given, self.slow = Counter[str](), Counter[str](), 0.0
        self.busy = self.most = 0  # requests at once
        self.robots = b"User-agent: blip-fetch\nDisallow: /robots\n"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked[self.path] += 1
                outer.busy += 1
                outer.most = max(outer.most, outer.busy)
                time.sleep(outer.slow)
                outer.busy -= 1
                outer.answer(self, self.path)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.at = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler, path: str) -> None:
        name = path.strip("/").partition("-")[0]
        if path == "/robots.txt":
            self.send(to, 200, self.robots)
        elif name == "flaky" and self.asked[path] == 1:  # fails once
            self.send(to, 503 if hash(path) % 2 else 500, b"")
        elif name == "down":
            self.send(to, 500, b"")
        elif name in ("404", "429"):
            self.send(to, int(name), b"", **({"Retry-After": "900"} if name == "429" else {}))
        elif name == "to":
            self.send(to, 302, b"", Location=f"/picture-{path}")
        elif name == "loop":
            self.send(to, 302, b"", Location=path)
        elif name == "file":
            self.send(to, 302, b"", Location="file:///etc/passwd")
        elif name == "keys":  # of the cloud
            self.send(to, 302, b"", Location="http://169.254.169.254/latest/meta-data/")
        elif name == "torn":  # leads to what is no URL
            self.send(to, 302, b"", Location="http://[torn")
        elif name == "bytes":  # leads to a URL that is no text
            self.send(to, 302, b"", Location="/\xff")
        elif name == "noai":
            self.send(to, 200, jpeg(path), **{"X-Robots-Tag": "googlebot: all, otherbot: noai, blip-fetch: noai"})
        elif name == "html":
            self.send(to, 200, b"<html>gone</html>")
        elif name == "huge":
            self.send(to, 200, jpeg(path) + b" " * 200_000)
        else:
            self.given[path] += 1
            self.send(to, 200, jpeg(path))

    @staticmethod
    def send(to: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
        to.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            to.send_header(name, value)
        to.end_headers()
        to.wfile.write(body)


@pytest.fixture
def hosts():
    found = Hosts()
    yield found
    found.server.shutdown()
    found.server.server_close()


def run(*words: object) -> int:
    return main(["fetch", *map(str, words), "--allow-private", "--timeout", str(HANG)])


def rows_of(out: Path) -> list[dict]:
    return [row for table in sorted(out.glob("*.parquet")) for row in pq.read_table(table).to_pylist()]


def in_tars(out: Path) -> dict[str, bytes]:
    found = {}
    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive}
    return found


def test_rows_become_tars_that_ingest_reads_and_every_row_is_told(hosts, tmp_path, capsys):
    names = ["picture-1", "404-1", "to-1", "loop-1", "file-1", "noai-1", "html-1", "huge-1", "robots-1", "picture-2", "picture-1"]
    table = {"URL": [f"{hosts.at}/{name}" for name in names] + [None], "TEXT": [f"text {i}" for i in range(len(names))] + ["none"]}
    table |= {"LICENSE": ["cc0"] * 12, "NSFW": [0.5] * 11 + [None], "width": list(range(12)), "tags": [["a", "b"]] * 12}
    pq.write_table(pa.table(table), tmp_path / "list.parquet")
    out = tmp_path / "web"
    assert run(tmp_path / "list.parquet", "--out", out, "--rows-per-shard", 8, "--max-bytes", 100_000) == 0
    found = {row["key"]: (row["error_message"] or "").partition(":")[0] for row in rows_of(out)}
    whys = ["", "refused", "", "too_many_redirects", "bad_url", "noai", "not_a_picture", "too_many_bytes", "robots", "", "", "bad_row"]
    assert list(found.values()) == whys and list(found)[:2] == ["000000000", "000000001"] and list(found)[-1] == "000010003"
    assert "4 of 12 rows gave a picture" in (said := capsys.readouterr().out) and "1 refused: an answer that says no" in said
    members = in_tars(out)
    assert members["000000000.txt"] == b"text 0" and members["000000000.jpg"]
    about = json.loads(members["000000000.json"])
    assert about["LICENSE"] == "cc0" and about["list_width"] == 0 and about["tags"] == ["a", "b"] and about["url"].endswith("picture-1")
    columns = pq.read_schema(out / "00000.parquet")
    assert columns.field("NSFW").type == pa.float64() and columns.field("tags").type == pa.list_(pa.string())
    assert json.loads((out / "00000_stats.json").read_text())["status_dict"]["success"] == 2
    assert hosts.asked["/robots-1"] == 0 and hosts.asked["/robots.txt"] == 1 and hosts.asked["/404-1"] == 1
    assert webdataset.recognises(out) and not list((out / ".fetch").glob("*.sqlite*"))
    records = [r for unit in webdataset.units(out) for r in webdataset.read(unit)]
    assert len(records) == 12


def test_a_failure_that_may_pass_is_tried_again_by_the_next_call_and_nothing_else_is(hosts, tmp_path, capsys):
    rows = [f"{hosts.at}/{name}-{i}\ttext {i}" for i, name in enumerate(["picture", "flaky", "down", "404", "flaky", "picture"] * 4)]
    (tmp_path / "list.tsv").write_text("\n".join(rows))  # CC12M's way: no line of names
    out = tmp_path / "web"
    assert run(tmp_path / "list.tsv", "--out", out, "--attempts", 1, "--rows-per-shard", 10) == 0
    first = Counter(row["status"] for row in rows_of(out))
    assert first["success"] == 8 and "may pass: run it again" in capsys.readouterr().out
    assert run(tmp_path / "list.tsv", "--out", out, "--attempts", 1, "--rows-per-shard", 10) == 0
    after = rows_of(out)
    assert Counter(row["status"] for row in after)["success"] == 16 and [row["caption"] for row in after] == [
        f"text {i}" for i in range(24)
    ]
    assert all(n == 1 for path, n in hosts.given.items()), "a picture came twice"
    assert all(hosts.asked[f"/404-{i}"] == 1 for i in range(3, 24, 6)) and hosts.asked["/down-2"] == 2
    tars = in_tars(out)
    assert len(tars) == 3 * 16 and tars["000000001.txt"] == b"text 1"
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    with pytest.raises(SystemExit):
        main(["fetch", str(tmp_path / "list.tsv")])
    assert run(tmp_path / "list.tsv", "--out", out, "--rows-per-shard", 10, "--again", "refused", "--min-yield", 0.9, "--attempts", 1) == 1
    said = capsys.readouterr().err
    assert "66.7% of 24 rows gave a picture, at least 90% were asked for" in said and hosts.asked["/404-3"] == 2
    assert {p: p.stat().st_mtime_ns for p in out.glob("*.tar")} != stamps  # those with rows that were tried are written anew


def test_a_host_that_wants_to_be_left_alone_is_and_the_rest_goes_on(hosts, tmp_path):
    other = Hosts()
    urls = [f"{hosts.at}/429-{i}" for i in range(300)] + [f"{other.at}/picture-{i}" for i in range(20)]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"image_url": u, "alt_text": "a"}) for u in urls))
    assert run(tmp_path / "list.jsonl", "--out", tmp_path / "web", "--per-host", 4) == 0
    found = Counter((row["error_message"] or "").partition(":")[0] for row in rows_of(tmp_path / "web"))
    assert found == {"": 20, "throttled": 300} and sum(n for path, n in hosts.asked.items() if "429" in path) <= 4
    other.server.shutdown()
    other.server.server_close()


def test_no_host_ends_the_run_for_others(hosts, tmp_path):
    other = Hosts()
    other.robots = b"User-agent: *\nDisallow: //[torn\n"
    user = hosts.at.replace("//", "//u%5B@")  # which robots.txt's reader takes for an address of IPv6
    urls = [
        f"{hosts.at}/keys",
        f"{hosts.at}/torn",
        f"{hosts.at}/bytes",
        f"{user}/picture-1",
        f"{other.at}/picture-1",
        f"{hosts.at}/picture-2",
    ]
    (tmp_path / "list.csv").write_text("\n".join(["url,caption", *(f"{u},a" for u in urls)]))
    assert run(tmp_path / "list.csv", "--out", tmp_path / "web", "--attempts", 1) == 0
    found = [(row["error_message"] or "").partition(":")[0] for row in rows_of(tmp_path / "web")]
    assert found == ["private_address", "bad_url", "bad_url", "bad_url", "robots_unknown", ""]
    other.server.shutdown()
    other.server.server_close()


def test_who_waits_for_a_host_does_not_wait_when_it_asks_for_years():
    async def waited() -> str | None:
        host = Host(1)
        host.refused("it answers 503", 0.01, most=60)
        waiting = asyncio.create_task(host.turn())
        await asyncio.sleep(0)
        host.refused("it answers 429", 1e9, most=60)
        await asyncio.wait_for(waiting, HANG)
        return host.closed

    assert asyncio.run(waited()) == "it answers 429"


def test_killed_at_any_moment_no_row_is_lost_and_none_comes_twice(hosts, tmp_path):
    hosts.slow = 0.01
    count = 120
    lines = ["url,caption", *(f"{hosts.at}/{'flaky' if i % 3 == 0 else 'picture'}-{i},text {i}" for i in range(count))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    words = [sys.executable, "-m", "blip_core", "fetch", str(tmp_path / "list.csv"), "--out", str(tmp_path / "web"), "--allow-private"]
    words += ["--rows-per-shard", "50", "--in-flight", "4", "--per-host", "4"]
    kills = 0
    for wanted in (20, 75):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and hosts.given.total() < wanted:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills and subprocess.run(words, capture_output=True, check=True)
    rows = rows_of(tmp_path / "web")
    assert [row["caption"] for row in rows] == [f"text {i}" for i in range(count)] and {row["status"] for row in rows} == {"success"}
    twice = sum(n - 1 for n in hosts.given.values())
    assert twice <= 4 * kills, "more came twice than can have been on their way when it was killed"


def test_a_disk_that_lost_the_end_costs_what_was_there_and_no_more(tmp_path):
    """Members are cut off, or the system wrote the ledger and not yet them."""

    def spool() -> Spool:
        return Spool(tmp_path / ".fetch", 0, tmp_path / "00000.tar")

    first = spool()
    for row in range(4):
        first.add(row, Outcome(b"", width=row), bytes([row + 1]) * 512)
    with pytest.raises(ValueError, match="another `blip fetch` works on this shard"):
        spool()
    first.close()
    with first.part.open("r+b") as file:
        file.seek(2 * 512)
        file.write(bytes(512))
    first.path.write_bytes(first.path.read_bytes() + b'{"row": 9')
    again = spool()
    assert {row: outcome.width for row, outcome in again.outcomes.items()} == {0: 0, 1: 1}
    again.add(7, Outcome(b""), b"x" * 512)
    again.close()
    again.path.write_bytes(again.path.read_bytes()[:-1])  # but for its end the line of row 7 is there
    again = spool()
    assert [*again.outcomes] == [0, 1]
    again.add(7, Outcome(b""), b"x" * 512)
    again.finish()
    again.close()
    finished = spool()  # killed between the tar and the table
    assert [*finished.outcomes] == [0, 1, 7] and finished.part.read_bytes() == b"\1" * 512 + b"\2" * 512 + b"x" * 512
    finished.close()


@pytest.mark.slow  # Ray starts, and a worker dies and comes again
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_workers_of_a_cluster_share_a_list_and_one_that_dies_loses_no_row(hosts, tmp_path):
    import psutil

    hosts.slow, count = 0.05, 400
    (tmp_path / "list.csv").write_text("\n".join(["url,caption", *(f"{hosts.at}/picture-{i},text {i}" for i in range(count))]))
    words = ["fetch", str(tmp_path / "list.csv"), "--out", str(tmp_path / "web"), "--allow-private", "--rows-per-shard", "40"]
    words += ["--per-host", "5", "--ray-workers", "2"]
    env = cold(environment(RAY_ADDRESS=""))
    process = subprocess.Popen([sys.executable, "-m", "blip_core", *words], env=env, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: hosts.given.total() > 100 or process.poll() is not None, pause=0.02)
    mine = [p for p in psutil.Process(process.pid).children(recursive=True) if p.name().startswith("ray::_Worker")]
    assert len(mine) == 2
    mine[0].kill()
    said = process.communicate(timeout=HANG)[1]
    assert process.returncode == 0 and "2 workers, each with 2 requests to a host" in said
    assert [row["caption"] for row in rows_of(tmp_path / "web")] == [f"text {i}" for i in range(count)]
    assert {row["status"] for row in rows_of(tmp_path / "web")} == {"success"}
    assert hosts.given.total() - count <= 2, "more came twice than were on their way to the worker that was killed"
    assert hosts.most <= 4, "the workers together ask a host for more at once than --per-host"


def test_what_can_not_be_fetched_is_said(hosts, tmp_path, capsys, caplog):
    def refused(*words: object) -> str:
        assert run(*words, "--out", tmp_path / "web") == 1
        return capsys.readouterr().err

    (tmp_path / "a.csv").write_text(f"url,other_url,caption\n{hosts.at}/picture-1,{hosts.at}/picture-2,a\n")
    (tmp_path / "b.csv").write_text("name,caption\na.jpg,a\n")
    (tmp_path / "c.csv").write_text(f"first,second,words\n{hosts.at}/picture-1,{hosts.at}/picture-2,a\n")
    assert "no column of URLs among name, caption; name the right one by --url" in refused(tmp_path / "b.csv")
    assert "2 columns of URLs among first, second, words" in refused(tmp_path / "c.csv")
    assert "no column 'link' among" in refused(tmp_path / "c.csv", "--url", "link")
    (tmp_path / "e.csv").write_text(f"url,one,two\n{hosts.at}/picture-1,a,b\n")
    assert "which column holds the texts is not plain among one, two; name the right one by --text" in refused(tmp_path / "e.csv")
    assert "no such file" in refused(tmp_path / "d.csv")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/a.csv").write_text(f"url,caption\n{hosts.at}/picture-1,a\n")
    (tmp_path / "packed/b.csv.gz").write_bytes(b"")
    assert run(tmp_path / "packed", "--out", tmp_path / "of-packed") == 0
    assert "not read: b.csv.gz" in caplog.text
    with pytest.raises(SystemExit):
        run(tmp_path / "a.csv", "--out", tmp_path / "web", "--shards", "x-1")
    assert "'x-1': expected A-B" in capsys.readouterr().err
    assert "--again nothing: no reason; there are bad_url" in refused(tmp_path / "a.csv", "--again", "nothing")
    assert "--rows-per-shard 20000: " in refused(tmp_path / "a.csv", "--rows-per-shard", 20000)
    assert "--shards 3-4: the list has 1 shards of 10000 rows" in refused(tmp_path / "a.csv", "--shards", "3-4")
    assert run(tmp_path / "a.csv", "--out", tmp_path / "web") == 0
    assert "was fetched of another list" in refused(tmp_path / "c.csv", "--url", "first", "--text", "words")


PRIVATE = "127.0.0.1 10.0.0.1 169.254.169.254 ::1 fd00::1 ::ffff:127.0.0.1 0.0.0.0 224.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: fe80::1%lo"


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_of_no_public_network_are_none(address):
    assert not is_public(address) and is_public("93.184.215.14") and is_public("64:ff9b::5db8:d70e")


def test_private_addresses_are_refused_here_and_by_name(hosts, tmp_path, capsys):
    port = hosts.at.rpartition(":")[2]
    names = ["127.0.0.1", "localhost", "[::1]", "0x7f.1", "\uff11\uff12\uff17.0.0.1", "127\u30020.0.1", "2130706433", "127.1"]
    urls = [f"http://{name}:{port}/picture-1" for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["url,caption", *(f"{u},a" for u in urls)]))
    assert main(["fetch", str(tmp_path / "list.csv"), "--out", str(tmp_path / "web"), "--attempts", "1"]) == 0
    found = [row["error_message"].partition(":")[0] for row in rows_of(tmp_path / "web")]
    assert found == ["private_address"] * 6 + ["bad_url"] * 2 and not hosts.asked


@pytest.mark.parametrize(
    "content", ['[{"url": "U", "caption": "a"}, 7]', '{"image_urls": ["U"], "captions": ["a"]}', '{"url": "U", "caption": "a"}\n' * 2]
)
def test_json_of_each_kind_is_a_list(tmp_path, content):
    (tmp_path / "list.json").write_text(content.replace("U", "http://a.example/1.jpg"))
    (found,) = open_lists([tmp_path], FetchConfig())
    first, *others = found.rows()
    assert (first.url, first.text) == ("http://a.example/1.jpg", "a") and all(o.fault or o == first for o in others)


def test_a_header_that_is_for_another_robot_says_nothing_to_us():
    assert opted_out("noai") == "noai" and opted_out("max-snippet:50, NoImageAI") == "noimageai"
    assert opted_out("googlebot: noindex, nofollow") is None and opted_out("blip-fetch: noindex") == "noindex" and opted_out("") is None
