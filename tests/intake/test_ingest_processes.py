"""Ingest over processes that may be killed at any moment, and over images that kill whoever decodes them."""

import hashlib
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from blip_core.tables.captions import read_tables
from blip_core.tables.shards import ShardImages
from tests.stages.test_ingest import digest, quarantine, run, write_data
from tests.support.archives import jpeg
from tests.support.processes import HANG, wait_until

CODE = """
    import sys
    from pathlib import Path
    if __name__ == "__main__":  # the processes that it starts import this too
        sys.path[:0] = {path!r}
        from tests.stages.test_ingest import run
        run(Path({data!r}), Path({out!r}))
"""
SHARDS = 16


@pytest.fixture
def data(tmp_path) -> Path:
    return write_data(tmp_path / "data", shards=SHARDS, images=40)


def start(data: Path, out: Path) -> subprocess.Popen:
    path = [os.fspath(Path(__file__).parents[2])]
    script = out.parent / f"{out.name}.py"
    script.write_text(textwrap.dedent(CODE).format(path=path, data=os.fspath(data), out=os.fspath(out)))
    env = {**os.environ, "BLIP_CORES": "2"}
    return subprocess.Popen([sys.executable, script], env=env, stderr=subprocess.PIPE, text=True)


def finished(out: Path) -> dict[Path, int]:
    """The files of finished units, by what tells one file from another of the same bytes."""
    tars = (p for unit in out.glob("work/ingest-*/[wc]*") for p in unit.glob("*.tar"))
    return {p: p.stat().st_ino for p in tars}


def kill_when(process: subprocess.Popen, moment) -> None:
    wait_until(lambda: moment() or process.poll() is not None, pause=0.002)
    assert process.poll() is None, f"ended before it could be killed: {process.communicate()[1]}"
    process.kill()
    process.wait()


def children_of(process: subprocess.Popen) -> list[int]:
    return [int(pid) for task in Path(f"/proc/{process.pid}/task").iterdir() for pid in (task / "children").read_text().split()]


def test_killed_at_any_moment_and_run_again(data, tmp_path):
    """After each kill -9 the finished units are not read again, the result is that of an unbroken run, and nothing else is left."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(data, whole)
    kept: dict[Path, int] = {}
    for least in (3, 8):
        process = start(data, out)
        kill_when(process, lambda least=least: len(finished(out)) >= least)
        time.sleep(random.uniform(0, 0.05))
        assert finished(out).items() >= kept.items()
        kept = finished(out)
    process = start(data, out)
    kill_when(process, lambda: any(out.glob("_tmp.*")))
    kept = {p: i for p, i in finished(out).items() if p.parent.name.startswith("web")}
    assert len(kept) == SHARDS * 10
    process = start(data, out)
    assert process.wait(HANG) == 0, process.communicate()[1]
    process.stderr.close()
    assert digest(out) == digest(whole)
    assert {p.stat().st_ino for p in (out / "shards").glob("web-*.tar")} == set(kept.values())
    assert not list(out.rglob("_tmp*")) and not list((out / "work").iterdir())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_workers_end_with_the_run_that_started_them(data, tmp_path):
    """They would wait for work for ever, and hold their memory."""
    process = start(data, tmp_path / "out")
    workers: list[int] = []

    def begun() -> bool:
        workers[:] = children_of(process)
        return len(workers) >= 2 and any((tmp_path / "out").glob("work/ingest-*/_tmp.*"))

    kill_when(process, begun)
    process.stderr.close()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


CRASHING = """
    import hashlib, os, signal, sys
    sys.path.remove(os.path.dirname(__file__))
    del sys.modules["simplejpeg"]
    import simplejpeg
    decode = simplejpeg.decode_jpeg
    def crash(data, *args, **kwargs):
        if hashlib.sha256(data).hexdigest() in os.environ["CRASHES"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "RAISE" in os.environ["CRASHES"]:
            raise RuntimeError("nobody foresaw this")
        return decode(data, *args, **kwargs)
    simplejpeg.decode_jpeg = crash
    if "AT_ONCE" in os.environ["CRASHES"]:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def crashes(tmp_path, monkeypatch):
    """A decoder that dies of certain images, in every process that ingest starts."""
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault/simplejpeg.py").write_text(textwrap.dedent(CRASHING))
    monkeypatch.syspath_prepend(tmp_path / "fault")
    return lambda *names: monkeypatch.setenv("CRASHES", " ".join(n if n.isupper() else hashlib.sha256(jpeg(n)).hexdigest() for n in names))


def test_an_image_that_kills_the_decoder_is_set_aside(tmp_path, monkeypatch, crashes):
    """Only it: what stood beside it, and what other processes were reading when it struck, is all there."""
    data = write_data(tmp_path / "data", shards=9)
    monkeypatch.setenv("BLIP_CORES", "2")
    crashes()
    before = run(data, tmp_path / "before")
    crashes("000000007", "000050001", "000050002", "n4")
    metrics = run(data, tmp_path / "out")
    dead = {r["key"]: (r["reason"], r["detail"]) for r in quarantine(tmp_path / "out") if r["reason"] == "decoder_crash"}
    told = ("decoder_crash", "the decoder ended its process by SIGSEGV")
    assert dead == dict.fromkeys(["web-000000007", "web-000050001", "web-000050002", "train-n4"], told)
    assert metrics["images_web"] == before["images_web"] - 3 and metrics["rejected_decoder_crash"] == 4
    images = ShardImages(tmp_path / "out/shards")
    for row in read_tables(tmp_path / "out/g0").to_pylist():
        assert images.bytes(row["shard"], row["key"]) == jpeg(row["key"].partition("-")[2])
    assert not list((tmp_path / "out").rglob("_tmp*"))


@pytest.mark.parametrize(
    ("name", "error", "told"), [("AT_ONCE", ValueError, "died before it had begun"), ("RAISE", RuntimeError, "foresaw")]
)
def test_what_is_no_fault_of_an_image_stops_the_run(tmp_path, crashes, name, error, told):
    """With its own message, from whichever process."""
    crashes(name)
    with pytest.raises(error, match=told):
        run(write_data(tmp_path / "data"), tmp_path)
