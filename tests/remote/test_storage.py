"""Objects from a real S3 server, through a proxy that breaks transfers in every way: whole and right, or a clear error."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from blip_core.config.intake import RemoteConfig
from blip_core.remote import storage
from blip_core.remote.storage import Storage
from tests.support.fault_proxy import Rule
from tests.support.processes import HANG, wait_until
from tests.support.s3_server import SECRET_KEY

CFG = RemoteConfig(attempts=4, timeout=int(HANG), connections=3)
IMPATIENT = CFG.model_copy(update={"attempts": 8, "timeout": 2})  # for what stalls: a busy server may be late besides
SIZE = 300_000
FAULTS = ("503", "429", "500", "reset", "lost", "cut", "short", "stall", "flip")


@pytest.fixture
def quick(monkeypatch, impatient):
    """Ranges of 100 kB, so that an object has several."""
    monkeypatch.setattr(storage, "_PART", 100_000)


@pytest.fixture
def url(s3) -> str:
    """An object of SIZE random bytes."""
    url = f"s3://{s3.bucket()}/crawl/00000.tar"
    s3.put(url, content())
    return url


def content(seed: int = 0, size: int = SIZE) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def fetch(url: str, path: Path, cfg: RemoteConfig = CFG) -> bytes:
    store = Storage(cfg)
    (stored,) = store.find(url)
    store.fetch(stored, path)
    return path.read_bytes()


def test_a_prefix_a_name_and_pages(s3, monkeypatch):
    """A prefix ends at a slash; folder marks are no objects; a listing of many pages is whole."""
    monkeypatch.setattr(storage, "_PAGE", 3)
    bucket = s3.bucket()
    names = [f"crawl/{i}.tar" for i in range(10)] + ["crawl/deep/ä b+c.tar"]
    for name in [*names, "crawl/", "crawl2/x.tar", "top.tar"]:
        s3.put(f"s3://{bucket}/{name}", name.encode())
    store = Storage(CFG)
    for prefix in ("crawl", "crawl/"):
        found = store.find(f"s3://{bucket}/{prefix}")
        assert [s.url for s in found] == sorted(f"s3://{bucket}/{name}" for name in names)
        assert [(s.size, s.etag) for s in found] == [
            (len(n.encode()), hashlib.md5(n.encode()).hexdigest()) for n in sorted(names, key=lambda n: f"s3://{bucket}/{n}")
        ]
    assert len(store.find(f"s3://{bucket}")) == 13 and len(store.find(f"s3://{bucket}/")) == 13
    assert [s.url for s in store.find(f"s3://{bucket}/top.tar")] == [f"s3://{bucket}/top.tar"]
    assert store.find(f"s3://{bucket}/nothing") == []


@pytest.mark.parametrize("kind", FAULTS)
def test_a_broken_transfer_ends_with_the_right_bytes(s3, url, tmp_path, quick, kind):
    """Each kind of fault, twice for the objects' ranges: the file is whole and right, and nothing else is left."""
    s3.proxy.breaks(Rule(kind, match="GET .*tar", count=1 if kind == "flip" else 2))
    assert fetch(url, tmp_path / "x" / "0.tar", IMPATIENT if kind == "stall" else CFG) == content()
    assert s3.proxy.rules[0].hits == (1 if kind == "flip" else 2)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["0.tar"]


def test_one_request_in_three_fails_in_any_way(s3, url, tmp_path, quick):
    for kind in ("503", "cut", "reset", "short"):
        s3.proxy.breaks(Rule(kind, match=".*", every=3))
        assert fetch(url, tmp_path / kind, CFG.model_copy(update={"attempts": 8})) == content()
        assert s3.proxy.rules[0].hits >= 2


def test_a_break_is_taken_up_where_it_was(s3, url, tmp_path, quick):
    s3.proxy.breaks(Rule("cut", match="GET .*tar", count=1, after=70_000))
    assert fetch(url, tmp_path / "x", CFG.model_copy(update={"connections": 1})) == content()
    ranges = [line.split()[-1] for line in s3.proxy.requests if line.startswith("GET") and "bytes=" in line]
    assert ranges[0] == "bytes=0-99999" and ranges[2:] == ["bytes=100000-199999", "bytes=200000-299999"]
    again = int(ranges[1].removeprefix("bytes=").partition("-")[0])
    assert 0 < again <= 70_000 and ranges[1].endswith("-99999")


@pytest.mark.parametrize(
    "kind,told", [("503", "503 SlowDown"), ("cut", "broke 4 times at byte"), ("short", "broke 4 times"), ("reset", "Connection")]
)
def test_what_never_succeeds_is_said_and_leaves_nothing(s3, url, tmp_path, quick, kind, told):
    store = Storage(CFG)
    (stored,) = store.find(url)
    s3.proxy.breaks(Rule(kind, match="GET .*tar", after=0))
    with pytest.raises(ValueError, match=told) as caught:
        store.fetch(stored, tmp_path / "x")
    assert url in str(caught.value) and "ingest.remote.attempts" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_bytes_that_are_wrong_twice_are_refused(s3, url, tmp_path, quick):
    s3.proxy.breaks(Rule("flip", match="GET .*tar"))
    with pytest.raises(ValueError, match=f"{url}: its MD5 is .*, its ETag .*, twice"):
        fetch(url, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_an_object_in_unequal_parts_is_checked_by_its_parts(s3, tmp_path, quick, monkeypatch):
    """Its ETag is no MD5 of the whole; the parts' sizes come from the server."""
    monkeypatch.setattr(storage, "_PART", 4 << 20)
    bucket, parts = s3.bucket(), [content(i, size) for i, size in enumerate((5 << 20, 6 << 20, 100))]
    name = {"Bucket": bucket, "Key": "big.tar"}
    upload = name | {"UploadId": s3.client.create_multipart_upload(**name)["UploadId"]}
    tags = [
        {"PartNumber": i, "ETag": s3.client.upload_part(**upload, PartNumber=i, Body=part)["ETag"]} for i, part in enumerate(parts, start=1)
    ]
    s3.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": tags})
    url = f"s3://{bucket}/big.tar"
    assert fetch(url, tmp_path / "x") == b"".join(parts)
    s3.proxy.breaks(Rule("flip", match="GET .*tar"))
    with pytest.raises(ValueError, match="the MD5s of its parts do not make its ETag"):
        fetch(url, tmp_path / "y")


def test_a_change_after_the_listing_is_noticed(s3, url, tmp_path, quick):
    """Before the first byte, and between two of them."""
    store = Storage(CFG.model_copy(update={"connections": 1}))
    (stored,) = store.find(url)
    s3.put(url, content(1))
    with pytest.raises(ValueError, match="changed since it was listed: .*`blip list`"):
        store.fetch(stored, tmp_path / "x")
    (stored,) = store.find(url)
    s3.proxy.breaks(Rule("stall", match="GET .*tar", count=1))
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(store.fetch, stored, tmp_path / "x")
        wait_until(lambda: s3.proxy.rules[0].hits, pause=0.01)
        s3.put(url, content(2))
        s3.proxy.breaks()
        with pytest.raises(ValueError, match="changed since it was listed"):
            fetching.result(HANG)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change,told",
    [
        ({"AWS_SECRET_ACCESS_KEY": "not-so-" + SECRET_KEY}, "403 SignatureDoesNotMatch.*AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "nobody:here"}, "403 .*AWS_"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "127.0.0.1:9.*AWS_ENDPOINT_URL_S3"),
        ({"AWS_ENDPOINT_URL_S3": "no url"}, "AWS_ENDPOINT_URL_S3"),
        ({"AWS_PROFILE": "nobody"}, "AWS_PROFILE"),
    ],
)
def test_what_a_user_can_mend_is_said_without_the_secret(s3, url, monkeypatch, quick, change, told):
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=told) as caught:
        Storage(CFG).find(url)
    secret = change.get("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    assert secret not in str(caught.value)


def test_what_is_not_there(s3, url, tmp_path):
    store = Storage(CFG)
    with pytest.raises(ValueError, match="s3://no-such-bucket/x.*404 NoSuchBucket.*AWS_ENDPOINT_URL_S3"):
        store.find("s3://no-such-bucket/x")
    (stored,) = store.find(url)
    bucket, _, key = url.removeprefix("s3://").partition("/")
    s3.client.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(ValueError, match=f"{url}: .* 404"):
        store.fetch(stored, tmp_path / "x")
    with pytest.raises(ValueError, match="expected s3://BUCKET/PREFIX"):
        store.find("s3://")


def test_without_credentials_it_asks_anonymously(s3, url, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=f"{url}: http.* answered 4"):  # Swift knows no public buckets
        Storage(CFG).find(url)
    assert s3.proxy.requests and all(line.endswith(" unsigned") for line in s3.proxy.requests)


@pytest.mark.parametrize("kind", [None, "503", "429", "reset", "lost"])
def test_an_upload_is_whole_and_the_same(s3, tmp_path, quick, monkeypatch, kind):
    """In parts, with faults of every request of the upload; the multipart's own reply may be lost too."""
    data, url = content(3, 12 << 20), f"s3://{s3.bucket()}/out/x.tar"
    (tmp_path / "x").write_bytes(data)
    monkeypatch.setattr(storage, "_PART", 5 << 20)  # the least that S3 takes for a part
    if kind:
        s3.proxy.breaks(Rule(kind, match="(PUT|POST) .*", every=3))
    Storage(CFG).upload(tmp_path / "x", url)
    bucket, _, key = url.removeprefix("s3://").partition("/")
    assert s3.client.get_object(Bucket=bucket, Key=key)["Body"].read() == data
    assert not kind or s3.proxy.rules[0].hits


def test_an_export_in_a_bucket(s3, ingested, tmp_path, quick, capsys):
    """The manifest comes last; after a break only what lacks is sent; a prefix that holds something else is refused."""
    from blip_core.__main__ import main

    url, out = f"s3://{s3.bucket()}/ds/g0", tmp_path / "out"
    flags = [
        "export",
        str(ingested / "generations/g0"),
        "--out",
        str(out),
        "--to",
        url,
        "--format",
        "parquet",
        "--work",
        str(tmp_path / "w"),
    ]
    s3.proxy.breaks(Rule("403", match="PUT .*README.*"))
    assert main(flags) == 1 and "403" in capsys.readouterr().err
    there = [stored.url.removeprefix(f"{url}/") for stored in Storage(CFG).find(url)]
    assert "manifest.json" not in there and there
    s3.proxy.breaks()
    assert main(flags) == 0
    sent = [line.split()[1].partition("/ds/g0/")[2] for line in s3.proxy.requests if line.startswith("PUT")]
    assert sent[-1] == "manifest.json" and "README.md" in sent and not set(sent) & set(there)
    stored = {s.url.removeprefix(f"{url}/"): s for s in Storage(CFG).find(url)}
    assert set(stored) == {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    for name in stored:
        Storage(CFG).fetch(stored[name], tmp_path / "back" / name)
        assert (tmp_path / "back" / name).read_bytes() == (out / name).read_bytes()
    s3.put(f"{url}/other.txt", b"x")
    assert main(flags) == 1 and "holds 1 objects that are not of" in capsys.readouterr().err
