"""Parts of the data in S3: as if they lay here, whatever breaks on the way; pinned by a listing that DVC sees."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from blip_core.__main__ import main
from blip_core.intake.formats.remote_webdataset import spool
from blip_core.intake.sources import expand, identity, is_remote, write_listings
from blip_core.preview.inspect import inspect
from blip_core.stages.ingest import ingest
from tests.stages.test_ingest import CFG, OUTPUTS, SPLITS, data, digest, quarantine, run  # noqa: F401
from tests.support.archives import karpathy_image, sample, tar_bytes, write_img2dataset, write_karpathy
from tests.support.fault_proxy import Rule
from tests.support.processes import HANG, cold, wait_until
from tests.support.small import small_values

ROOT = Path(__file__).parents[2]
REMOTE = CFG.remote.model_copy(update={"attempts": 12})


def listed(data: Path, folder: Path, **changes) -> Path:  # noqa: F811
    """A data folder with the listings of the parts in S3, and links to what lies in `data`."""
    folder.mkdir()
    for part in ("web", "clean"):
        if part not in changes:
            (folder / part).symlink_to(data / part)
    write_listings(folder, CFG.model_copy(update=changes))
    return folder


@pytest.mark.parametrize(
    "place,names",
    [
        ("s3://b/p", ["s3://b/p"]),
        ("p/{08..11}.tar", ["p/08.tar", "p/09.tar", "p/10.tar", "p/11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("a.tar::b{1..2}.tar", ["a.tar", "b1.tar", "b2.tar"]),
        (("s3://b/{x,y}", "s3://b/z"), ["s3://b/x", "s3://b/y", "s3://b/z"]),
        ("{one}", ["{one}"]),
    ],
)
def test_names_as_webdataset_users_write_them(place, names):
    assert expand(place) == names


@pytest.mark.parametrize("place", [("s3://b/p", "web"), ("s3://b/p", "https://a.example/x.tar"), (), "s3://b/{3..1}.tar", "{0..9999999}"])
def test_places_that_are_none(place):
    with pytest.raises(ValueError, match="expected|more than"):
        is_remote(place), expand(place)


def test_a_crawl_in_s3_gives_the_same_bytes(s3, data, tmp_path, impatient):  # noqa: F811
    """With side tables, failures, a shard that was lost and a corrupt one; and every third request of it broken."""
    (data / "web/00002.tar").write_bytes(tar_bytes([*sample("c"), ("d.jpg", b"<html>"), ("d.txt", b"x")])[:-1100])
    (data / "web/00001.tar").unlink()
    write_img2dataset(data / "web/more", "00007", ["a", "b"])
    here = run(data, tmp_path / "here")
    web = f"s3://{s3.bucket()}/crawl"
    s3.put_folder(web, data / "web")
    for kind in (None, "503", "cut"):
        place, out = listed(data, tmp_path / f"data-{kind}", web=web), tmp_path / f"out-{kind}"
        s3.proxy.breaks(*[Rule(kind, match=".*", every=3)] if kind else [])
        there = run(place, out, web=web, remote=REMOTE)
        assert there == here and {r["where"].removeprefix(f"{web}/") for r in quarantine(out)} == {
            r["where"].removeprefix("web/") for r in quarantine(tmp_path / "here")
        }
        for name in ("shards", "g0", "heldout"):
            assert digest(out / name) == digest(tmp_path / "here" / name)
        assert not list((out / "work").iterdir())


def test_both_parts_in_s3_and_a_plain_crawl(s3, data, tmp_path):  # noqa: F811
    """The clean set, a list with images, is copied first; tars of equal keys are told apart by their names."""
    for name in ("a", "b"):
        (data / f"web/{name}.tar").write_bytes(tar_bytes([*sample("x"), *sample("y")]))
    for path in (data / "web").glob("0000*"):
        path.unlink()
    here = run(data, tmp_path / "here")
    url = f"s3://{s3.bucket()}"
    s3.put_folder(url, data)
    places = {"web": f"{url}/web/{{a,b}}.tar", "clean": f"{url}/clean"}
    there = run(listed(data, tmp_path / "listed", **places), tmp_path / "there", **places)
    assert there == here and digest(tmp_path / "there/shards") == digest(tmp_path / "here/shards")
    names = run(data, tmp_path / "names", web=("web/a.tar", f"file://{data}/web/b.tar"))
    assert names == here and digest(tmp_path / "names/shards") == digest(tmp_path / "here/shards")


def test_one_tar_at_a_time_lies_here(s3, data, tmp_path, monkeypatch):  # noqa: F811
    """While a shard is read, no other lies on the disk; what a killed process left is removed, what a living one holds is not."""
    web, work = f"s3://{s3.bucket()}/crawl", tmp_path / "work"
    s3.put_folder(web, data / "web")
    place = listed(data, tmp_path / "listed", web=web)
    seen, dead = [], tmp_path / "dead"
    from blip_core.intake import units as intake

    def admit(*args, real=intake.admit, **more):
        seen.append(sorted(p.name for p in work.rglob("*.tar") if "_spool." in str(p)))
        return real(*args, **more)

    monkeypatch.setattr(intake, "admit", admit)
    monkeypatch.setattr("blip_core.stages.ingest.take_in_all", lambda tasks: [intake.take_in(t) for t in tasks])  # here, to be watched
    ingest(place, *(tmp_path / n for n in OUTPUTS), cfg=CFG.model_copy(update={"web": web}), work=work)
    assert {tuple(s) for s in seen} == {("00000.tar",), ("00001.tar",), ()}
    code = "import os, pathlib, sys; from blip_core.intake.formats.remote_webdataset import spool\n"
    code += "with spool(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, dead], cwd=ROOT).returncode == -9
    assert len(list(dead.glob("_spool.*"))) == 2
    with spool(dead) as first, spool(dead) as second:
        assert sorted(p for p in dead.iterdir() if p.is_dir()) == sorted([first, second])
    assert not list(dead.iterdir())


def test_a_listing_is_needed_and_must_be_of_this_place(s3, data, tmp_path, capsys):  # noqa: F811
    web = f"s3://{s3.bucket()}/crawl"
    with pytest.raises(ValueError, match="web.objects.json: missing.*`blip list`"):
        run(data, tmp_path, web=web)
    with pytest.raises(ValueError, match=f"{web}: nothing lies there"):
        write_listings(data, CFG.model_copy(update={"web": web}))
    s3.put_folder(web, data / "web")
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    values["ingest"]["web"] = web
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    flags = ["list", "--data", str(data), "--params", str(tmp_path / "params.yaml"), "--work", str(tmp_path / "w")]
    assert main(flags) == 0
    assert "web.objects.json: 6 objects" in capsys.readouterr().out
    before = (data / "web.objects.json").stat().st_mtime_ns
    assert main(flags) == 0 and "as before" in capsys.readouterr().out
    assert (data / "web.objects.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="lists s3://.*/crawl, but ingest.web is s3://.*/other"):
        run(data, tmp_path, web=f"{web}/other")
    (data / "web.objects.json").write_text("{}")
    with pytest.raises(ValueError, match="not a listing"):
        run(data, tmp_path, web=web)


def test_a_change_in_the_bucket(s3, data, tmp_path):  # noqa: F811
    """An object that changed after the listing stops ingest; a new listing says what changed and makes another identity."""
    web = f"s3://{s3.bucket()}/crawl"
    s3.put_folder(web, data / "web")
    place, cfg = listed(data, tmp_path / "listed", web=web), CFG.model_copy(update={"web": web})
    before = list(identity(place, "web", web))
    s3.put(f"{web}/00001.tar", tar_bytes(sample("new")))
    with pytest.raises(ValueError, match="00001.tar: changed since it was listed"):
        run(place, tmp_path / "out", web=web)
    s3.put(f"{web}/00005.tar", tar_bytes(sample("more")))
    assert "1 new, 1 changed" in write_listings(place, cfg)[0]
    assert list(identity(place, "web", web)) != before
    assert run(place, tmp_path / "out", web=web, max_rejected=1.0)["images_web"] == 12


def test_a_name_that_leaves_the_folder_is_refused(s3, data, tmp_path):  # noqa: F811
    web = f"s3://{s3.bucket()}"
    s3.put(f"{web}/crawl/0.tar", tar_bytes(sample("a")))
    write_listings(data, CFG.model_copy(update={"web": web}))
    listing = json.loads((data / "web.objects.json").read_text())
    for name in ("../../evil.tar", "/etc/x.tar", "a//b.tar", "n" * 256 + ".tar"):
        (data / "web.objects.json").write_text(json.dumps(listing | {"objects": {name: {"size": 1, "etag": "x"}}}))
        with pytest.raises(ValueError, match="can't be a local file's"):
            run(data, tmp_path / "out", web=web)
    assert not list(tmp_path.rglob("evil*"))


def test_inspect_looks_into_the_bucket(s3, data, tmp_path):  # noqa: F811
    web = f"s3://{s3.bucket()}/crawl"
    s3.put_folder(web, data / "web")
    here, there = inspect(data / "web", cfg=CFG), inspect(web, cfg=CFG)
    assert there.replace("remote_webdataset", "webdataset").replace(web, str(data / "web")) == here
    for shard in range(2, 9):
        s3.put(f"{web}/{shard:05d}.tar", tar_bytes(sample(f"x{shard}")))
    s3.proxy.breaks()
    assert "samples, in 3 units" in inspect(web, cfg=CFG, limit=10)
    assert len({line.split()[1] for line in s3.proxy.requests if line.startswith("GET") and ".tar" in line}) == 3


def test_a_killed_ingest_goes_on(s3, tmp_path):
    """kill -9 in the middle of a transfer, twice: no half tar is read, no whole one is fetched again, the result is the same."""
    for shard in range(6):
        write_img2dataset(tmp_path / "data/web", f"{shard:05d}", [f"{shard:05d}{i:04d}" for i in range(60)])
    write_karpathy(tmp_path / "data/clean", [karpathy_image(f"n{i}", i, split) for i, split in enumerate(SPLITS)])
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    values["ingest"] |= {"web": f"s3://{s3.bucket()}/crawl", "remote": {"attempts": 6, "timeout": int(HANG), "connections": 2}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    s3.put_folder(values["ingest"]["web"], tmp_path / "data/web")
    place = listed(tmp_path / "data", tmp_path / "listed", web=values["ingest"]["web"])

    def start(out: Path) -> subprocess.Popen:
        names = ("shards", "generation", "heldout", "metadata", "vocab", "quarantine", "metrics")
        flags = [f"--out-{name}={out / file}" for name, file in zip(names, OUTPUTS, strict=True)]
        common = ["--data", place, "--work", out / "work", "--params", tmp_path / "params.yaml"]
        command = [sys.executable, "-m", "blip_core", "stage", "ingest", *common, *flags]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=cold(), start_new_session=True)

    whole = start(tmp_path / "whole")
    assert whole.wait(HANG) == 0, whole.stderr.read()
    for done in (0, 2):
        s3.proxy.breaks(Rule("stall", match=f"GET .*{done + 2:05d}.tar", after=5000))
        process = start(tmp_path / "broken")
        wait_until(lambda done=done: s3.proxy.rules[0].hits and list((tmp_path / "broken").rglob(f"web-{done:06d}")), pause=0.01)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "broken/shards").exists()
    finished = {p.name for p in (tmp_path / "broken/work").glob("ingest-*/web-*")}
    assert finished and finished < {f"web-{i:06d}" for i in range(6)}
    s3.proxy.breaks()
    last = start(tmp_path / "broken")
    assert last.wait(HANG) == 0, last.stderr.read()
    fetched = {line.split()[1][-9:-4] for line in s3.proxy.requests if line.startswith("GET") and line.split()[1].endswith(".tar")}
    assert not {f"web-0{stem}" for stem in fetched} & finished
    for name in OUTPUTS:
        broken, unbroken = tmp_path / "broken" / name, tmp_path / "whole" / name
        assert digest(broken) == digest(unbroken) if broken.is_dir() else broken.read_bytes() == unbroken.read_bytes()
    assert not list((tmp_path / "broken/work").glob("ingest-*"))
